"""Fetches a model in a process of its own, to be killed; begun from one that has all imported."""

from __future__ import annotations

import asyncio
import multiprocessing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from handlers.model_config import Source as Origin
from scheduler.clock import SystemClock
from scheduler.downloader.cache import Cache
from scheduler.downloader.fetcher import Fetcher, Limits, State, Status
from scheduler.telemetry import logs


def model(kind: str, location: str, name: str = "big", engine: str = "transformers") -> Any:
    """As much of a model's config as the downloader reads."""
    origin = Origin(kind, location, is_copied=kind == "folder")
    return SimpleNamespace(name=name, source=origin, engine=engine)


async def fetch(fetcher: Fetcher, config: Any, *, is_needed: bool = True) -> Status:
    """Want a model until it is here or has failed."""
    while True:
        status = fetcher.want(config, is_needed=is_needed)
        if status.state in (State.HELD, State.FAILED):
            return status
        await asyncio.sleep(0.01)


async def _main(location: str, cache: Path, piece_bytes: int) -> Status:
    kept = Cache(cache)
    kept.open()
    fetcher = Fetcher(kept, SystemClock(), Limits(), piece_bytes=piece_bytes)
    working = asyncio.create_task(fetcher.run())
    status = await fetch(fetcher, model("http", location))
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    return status


def _run(location: str, cache: Path, piece_bytes: int, told: Any) -> None:
    logs.configure("error")
    told.send(asyncio.run(_main(location, cache, piece_bytes)))


class Downloading:
    """A process that fetches a model into a cache."""

    def __init__(self, location: str, cache: Path, piece_bytes: int) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self._told, telling = context.Pipe(duplex=False)
        given = (location, cache, piece_bytes, telling)
        self._process = context.Process(target=_run, args=given)
        self._process.start()
        telling.close()

    def kill(self) -> None:
        """As ``kill -9`` does."""
        self._process.kill()
        self._process.join()
        self._told.close()

    def status(self) -> Status:
        """What it came to; waits for it."""
        status: Status = self._told.recv()
        self._process.join()
        self._told.close()
        return status
