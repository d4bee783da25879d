"""Has models' files on this machine before a replica is made of them.

A replica is registered at TorchServe only once its files are here, so no worker, and no device,
waits for a download; until then it is reported as starting, with how far its files are. Files that
some replica was made from are marked as in use, so that nobody who makes room takes them away, and
the marks stay while a replica does, whatever becomes of the runner.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from handlers.model_config import ModelConfig, Source
from scheduler.clock import Clock
from scheduler.downloader.cache import Cache
from scheduler.downloader.fetcher import Fetcher, State, Status
from scheduler.errors import Unavailable
from scheduler.rpc import plait_pb2 as pb

#: Seconds between two renewals of the marks of files in use.
_RENEW_S: Final = 600.0

_STATES: Final = {
    State.ABSENT: pb.Holding.ABSENT,
    State.FETCHING: pb.Holding.FETCHING,
    State.HELD: pb.Holding.HELD,
    State.FAILED: pb.Holding.FAILED,
}


class FilesGone(Unavailable):
    """Files that were here a moment ago are not; they are fetched again."""


class Weights:
    """The files of the models of one node."""

    def __init__(
        self,
        fetcher: Fetcher,
        cache: Cache,
        configs: Mapping[str, ModelConfig],
        runner_id: str,
        clock: Clock,
        prefetched: Collection[str] = (),
    ) -> None:
        """``prefetched``: names of models to have here before a replica needs them."""
        self._fetcher, self._cache, self._clock = fetcher, cache, clock
        self._remote = {n: c for n, c in configs.items() if c.source.is_remote}
        self._runner_id, self._prefetched = runner_id, frozenset(prefetched)
        self._needed: frozenset[str] = frozenset()
        self._holdings: list[pb.Holding] = []
        self._renewed_at: float | None = None

    def __repr__(self) -> str:
        return f"<Weights needed={sorted(self._needed)} prefetched={sorted(self._prefetched)}>"

    def find(self, config: ModelConfig) -> ModelConfig | Status:
        """The model with its files on this machine, or how far they are; begins to fetch them."""
        if not config.source.is_remote:
            return config
        status = self._fetcher.want(config, is_needed=True)
        if status.folder is None:
            return status
        return replace(config, source=Source("folder", str(status.folder)))

    async def use(self, config: ModelConfig) -> None:
        """Mark the files of a model, as :meth:`find` gave it, before a replica is made of them.

        Raises:
            FilesGone: somebody has just made room.
        """
        if config.name in self._remote:
            folder, user = Path(config.source.location), self._user(config.name)
            try:
                await asyncio.to_thread(self._cache.use, folder, user)
            except FileNotFoundError:
                raise FilesGone(f"{folder} was taken away; it is fetched again") from None

    async def settle(self, needed: Collection[str], running: Collection[str]) -> None:
        """Fetch and keep for these models: those that replicas are wanted of, and that have any."""
        self._needed = frozenset(needed)
        for name, config in self._remote.items():
            if name in self._needed:
                continue
            if name in self._prefetched:
                self._fetcher.want(config, is_needed=False)
            else:
                self._fetcher.drop(name)
        now = self._clock.monotonic()
        is_due = self._renewed_at is None or now - self._renewed_at >= _RENEW_S
        if is_due:
            self._renewed_at = now
        self._holdings = await asyncio.to_thread(self._look, frozenset(running), is_due)

    def _look(self, running: frozenset[str], is_due: bool) -> list[pb.Holding]:
        """Settle the marks; what there is of each model."""
        for name in self._remote:
            user = self._user(name)
            for folder in self._cache.uses(user):
                if name not in running:
                    self._cache.unuse(folder, user)
                elif is_due:
                    self._cache.renew(folder, user)
        return [_holding(n, self._fetcher.status(c)) for n, c in self._remote.items()]

    def holdings(self) -> list[pb.Holding]:
        """What there was of each model at the last look."""
        return self._holdings

    def _user(self, model: str) -> str:
        return f"{self._runner_id}.{model}"


def say(status: Status) -> str:
    """How far a model's files are, for a person."""
    if status.state is State.FAILED:
        return f"its files cannot be fetched: {status.detail}"
    if status.total_bytes is None:
        return f"downloading: {status.detail}" if status.detail else "downloading"
    percent = 100 * status.held_bytes // max(status.total_bytes, 1)
    rate = f" at {status.bytes_per_s / 1e6:.0f} MB/s" if status.bytes_per_s else ""
    more = f"; {status.detail}" if status.detail else ""
    return f"downloading {percent} % of {status.total_bytes / 1e9:.2f} GB{rate}{more}"


def _holding(model: str, status: Status) -> pb.Holding:
    return pb.Holding(
        model=model,
        state=_STATES[status.state],
        held_bytes=status.held_bytes,
        total_bytes=status.total_bytes or 0,
        bytes_per_s=status.bytes_per_s,
        detail=status.detail,
    )
