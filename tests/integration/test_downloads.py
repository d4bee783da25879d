"""Models' files are fetched whole and right, whatever happens on the way."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest_asyncio

from scheduler.clock import SystemClock
from scheduler.downloader.cache import Cache
from scheduler.downloader.fetcher import Fetcher, Limits
from scheduler.testing.file_server import Faults, FileServer
from tests.integration.download_process import Downloading, fetch, model
from tests.waiting import until

PIECE = 64 * 1024
WEIGHTS = "model.safetensors"


def make_model(folder: Path, seed: int = 0, size: int = 3_000_000) -> dict[str, bytes]:
    """Files of a model as far as a downloader looks into them."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "config.json": b'{"num_hidden_layers": 2}',
        WEIGHTS: random.Random(seed).randbytes(size),
        "tokenizer.json": b'{"version": "1.0"}',
    }
    for name, body in files.items():
        (folder / name).write_bytes(body)
    return files


def content(folder: Path | None) -> dict[str, bytes]:
    assert folder is not None
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")}


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[FileServer]:
    server = FileServer(tmp_path / "model")
    await server.start()
    yield server
    await server.stop()


@asynccontextmanager
async def fetching(cache: Path, limits: Limits | None = None) -> AsyncIterator[Fetcher]:
    kept = Cache(cache)
    kept.open()
    fetcher = Fetcher(kept, SystemClock(), limits or Limits(), piece_bytes=PIECE)
    working = asyncio.create_task(fetcher.run())
    yield fetcher
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)


async def test_a_model_comes_whole_over_connections_that_fail(
    server: FileServer, tmp_path: Path
) -> None:
    files = make_model(tmp_path / "model")
    server.faults = Faults(failing_share=0.3)

    async with fetching(tmp_path / "cache") as fetcher:
        status = await fetch(fetcher, model("http", server.url))

    assert content(status.folder) == files
    assert server.num_broken > 0


async def test_ten_kills_leave_no_wrong_byte_and_lose_no_whole_piece(
    server: FileServer, tmp_path: Path
) -> None:
    files = make_model(tmp_path / "model", size=12_000_000)
    server.faults = Faults(failing_share=0.05, bytes_per_s=1_000_000)
    draw = random.Random(7)

    for _ in range(10):
        enough = len(server.answered) + 8 + draw.randrange(8)
        running = Downloading(server.url, tmp_path / "cache", PIECE)
        await until(partial(has_answered, server, enough))
        running.kill()
    server.faults = Faults()
    last = Downloading(server.url, tmp_path / "cache", PIECE)

    status = await asyncio.to_thread(last.status)
    assert content(status.folder) == files
    fetched = sum(end - start for name, start, end in server.answered if name == WEIGHTS)
    # Each kill costs at most the pieces that were under way, of which each connection has one.
    assert fetched <= len(files[WEIGHTS]) + 11 * 9 * PIECE


def has_answered(server: FileServer, count: int) -> bool:
    return len(server.answered) >= count
