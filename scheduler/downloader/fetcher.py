"""Keeps the models that a machine needs in its cache: one fetch for each, the needed ones first.

Level-triggered: whoever needs a model says so again and again, and is told each time where its
folder is or how far it is. A fetch that failed begins again, after a pause that doubles, when it is
still wanted then; what it had is kept. When a source cannot be asked, what was fetched of it
before counts.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final

import structlog

from handlers.model_config import ModelConfig
from handlers.model_config import Source as Origin
from scheduler import plugins, sources
from scheduler.clock import Clock
from scheduler.downloader.bandwidth import Bandwidth
from scheduler.downloader.cache import Cache
from scheduler.downloader.files import PIECE_BYTES, Files
from scheduler.downloader.model import ModelFetch, Need
from scheduler.downloader.room import Room, to_evict
from scheduler.downloader.transfer import Counters, Transfer, Urgency
from scheduler.errors import PlaitError
from scheduler.sources.base import Busy, Changed, Source

log = structlog.get_logger(__name__)

_FIRST_PAUSE_S: Final = 2.0
_LONGEST_PAUSE_S: Final = 60.0
#: Times a model may change while it is fetched before that counts as a failure.
_MOST_CHANGES: Final = 3
#: Seconds that a speed is the mean of.
_SPEED_OVER_S: Final = 5.0


class NoRoom(PlaitError):
    """A model does not fit on the disk or into the cache; nothing of it was begun."""


class State(Enum):
    """How a model is."""

    #: Not here, or not all of it, and nobody is fetching it.
    ABSENT = "absent"
    FETCHING = "fetching"
    HELD = "held"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Status:
    """What there is to tell about a model on this machine."""

    state: State
    #: Where its files are; None unless it is held.
    folder: Path | None = None
    held_bytes: int = 0
    #: None: not known yet.
    total_bytes: int | None = None
    bytes_per_s: float = 0.0
    #: For a person; empty when there is nothing to say.
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a downloader may take."""

    num_connections: int = 8
    #: 0: as fast as it goes.
    bytes_per_s: float = 0.0
    #: What the cache may hold; 0: as much as the file system.
    cache_bytes: int = 0
    #: To stay free on the file system.
    reserve_bytes: int = 0


@dataclass(slots=True, eq=False)
class _Job:
    """A model that is wanted."""

    origin: Origin
    need: Need
    number: int
    is_needed: bool
    task: asyncio.Task[None] | None = None
    fetch: ModelFetch | None = None
    folder: Path | None = None
    total_bytes: int = 0
    error: str = ""
    pause_s: float = 0.0
    retry_at: float = 0.0
    #: Moments and bytes held then.
    samples: deque[tuple[float, int]] = field(default_factory=deque)

    def urgency(self) -> Urgency:
        return (0 if self.is_needed else 1, self.number)


def need_of(config: ModelConfig, layers: frozenset[int] | None = None) -> Need:
    """What a machine that runs a model, or these layers of it, needs of its files."""
    if config.engine == "pipelined":
        return Need(True, layers)
    return Need()


def open_source(origin: Origin) -> Source:
    """The member of the family that a model's YAML names."""
    opened: Source = plugins.find(sources, origin.kind).Source(origin)
    return opened


class Fetcher:
    """The models of one machine."""

    def __init__(
        self, cache: Cache, clock: Clock, limits: Limits, *, piece_bytes: int = PIECE_BYTES
    ) -> None:
        self._cache, self._clock, self._limits = cache, clock, limits
        bandwidth = Bandwidth(limits.bytes_per_s, clock)
        self._transfer = Transfer(clock, limits.num_connections, bandwidth)
        self._files = Files(cache, self._transfer, piece_bytes)
        self._jobs: dict[str, _Job] = {}
        self._num_jobs = 0
        #: One model at a time counts the room it needs.
        self._room = asyncio.Lock()
        #: Set whenever a fetch has ended.
        self.has_ended = asyncio.Event()

    def __repr__(self) -> str:
        fetching = sum(job.task is not None for job in self._jobs.values())
        return f"<Fetcher fetching={fetching}/{len(self._jobs)}>"

    @property
    def counters(self) -> Counters:
        return self._transfer.counters

    async def run(self) -> None:
        """Work until cancelled; what has come stays in the cache."""
        try:
            await self._transfer.run()
        finally:
            tasks = [job.task for job in self._jobs.values() if job.task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def want(self, config: ModelConfig, need: Need | None = None, *, is_needed: bool) -> Status:
        """Have a model here; ``is_needed``: now, before what is only fetched ahead."""
        job = self._jobs.get(config.name)
        if job is None:
            self._num_jobs += 1
            job = _Job(config.source, need or need_of(config), self._num_jobs, is_needed)
            self._jobs[config.name] = job
        job.is_needed = is_needed
        if job.folder is not None and not job.folder.is_dir():
            job.folder = None
        is_due = self._clock.monotonic() >= job.retry_at
        if job.folder is None and job.task is None and is_due:
            job.error = ""
            job.task = asyncio.create_task(self._run(config.name, job), name=config.name)
        return self._status(job)

    def drop(self, model: str) -> None:
        """Nobody wants a model any more; what of it has come is kept."""
        job = self._jobs.pop(model, None)
        if job is not None and job.task is not None:
            job.task.cancel()

    def status(self, config: ModelConfig, need: Need | None = None) -> Status:
        """How a model is, without wanting it; reads the disk when nobody wants it."""
        if (job := self._jobs.get(config.name)) is not None:
            return self._status(job)
        folder = self._cache.find(config.source, str(need or need_of(config)))
        if folder is None:
            return Status(State.ABSENT)
        size = self._cache.size_of(folder)
        return Status(State.HELD, folder, size, size)

    def _status(self, job: _Job) -> Status:
        if job.folder is not None:
            return Status(State.HELD, job.folder, job.total_bytes, job.total_bytes)
        if job.fetch is None:
            state = State.FAILED if job.error else State.FETCHING
            return Status(state, detail=job.error or "asking its source")
        held, total = job.fetch.held_bytes(), job.fetch.progress.total_bytes
        if job.error:
            return Status(State.FAILED, None, held, total, detail=job.error)
        speed = self._speed(job, held)
        detail = "another process is fetching it" if job.fetch.is_elsewhere() else ""
        return Status(State.FETCHING, None, held, total, speed, detail)

    def _speed(self, job: _Job, held: int) -> float:
        now = self._clock.monotonic()
        job.samples.append((now, held))
        while len(job.samples) > 2 and now - job.samples[0][0] > _SPEED_OVER_S:
            job.samples.popleft()
        began, first = job.samples[0]
        return max(0.0, (held - first) / (now - began)) if now > began else 0.0

    # -- one fetch

    async def _run(self, model: str, job: _Job) -> None:
        try:
            job.folder = await self._fetch_or_find(model, job)
            job.total_bytes = await asyncio.to_thread(self._cache.size_of, job.folder)
            job.pause_s = 0.0
            log.info("model_fetched", model=model, folder=str(job.folder))
        except (PlaitError, OSError) as error:
            self._failed(model, job, error)
        except Exception as error:
            # A fault of ours; it must neither pass unseen nor be repeated without a pause.
            log.exception("model_fetch_failed", model=model)
            self._failed(model, job, error)
        finally:
            job.task = None
            self.has_ended.set()

    def _failed(self, model: str, job: _Job, error: Exception) -> None:
        job.pause_s = min(max(job.pause_s * 2, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
        job.retry_at = self._clock.monotonic() + job.pause_s
        job.error = str(error) or type(error).__name__
        log.warning("model_not_fetched", model=model, error=job.error, retry_s=job.pause_s)

    async def _fetch_or_find(self, model: str, job: _Job) -> Path:
        """Fetch a model, or find what was fetched before when its source cannot be asked."""
        try:
            return await self._fetch(model, job)
        except Busy as error:
            found = await asyncio.to_thread(self._cache.find, job.origin, str(job.need))
            if found is None:
                raise
            log.warning("source_not_asked", model=model, folder=str(found), error=str(error))
            return found

    async def _fetch(self, model: str, job: _Job) -> Path:
        source = open_source(job.origin)
        try:
            for _ in range(_MOST_CHANGES):
                job.samples.clear()
                job.fetch = ModelFetch(
                    job.origin, job.need, source, self._cache, self._files, job.urgency,
                    lambda num_bytes: self._make_room(model, job, num_bytes),
                )  # fmt: skip
                try:
                    return await job.fetch.run()
                except Changed as error:
                    log.warning("source_changed", model=model, why=str(error))
                    changed = error
            raise changed
        finally:
            await source.close()

    async def _make_room(self, model: str, job: _Job, needed: int) -> None:
        """See that so many bytes fit, taking away what nobody uses.

        Raises:
            NoRoom: they do not; says how many there are and would have to be.
        """
        async with self._room:
            room = await asyncio.to_thread(self._look_at_room, job)
            shortage = room.shortage(needed)
            if not shortage:
                return
            await asyncio.to_thread(self._evict, shortage)
            room = await asyncio.to_thread(self._look_at_room, job)
        if room.shortage(needed):
            raise NoRoom(_no_room(model, needed, room, self._cache.folder))

    def _look_at_room(self, job: _Job) -> Room:
        promised = sum(_rest(other) for other in self._jobs.values() if other is not job)
        return Room(
            self._cache.free_bytes(),
            self._limits.reserve_bytes,
            self._cache.held_bytes(),
            self._limits.cache_bytes,
            promised,
        )

    def _evict(self, shortage: int) -> None:
        now = self._clock.now()
        shortage -= self._cache.sweep(now)
        wanted = [other.folder.name for other in self._jobs.values() if other.folder is not None]
        going = to_evict(self._cache.models(now), shortage, wanted)
        if going:
            freed = self._cache.evict(going, now)
            log.info("models_evicted", names=going, num_bytes=freed)


def _rest(job: _Job) -> int:
    """Bytes that a fetch still has to write."""
    if job.task is None or job.fetch is None or job.fetch.progress.total_bytes is None:
        return 0
    return max(0, job.fetch.progress.total_bytes - job.fetch.held_bytes())


def _no_room(model: str, needed: int, room: Room, folder: Path) -> str:
    said = (
        f"model {model}: there is no room for {needed} bytes in {folder}: {room.free} are free, "
        f"{room.reserve} of them are kept free and {room.promised} promised to other models"
    )
    if room.limit:
        said += f"; the cache holds {room.held} of the {room.limit} it may"
    return f"{said}; nothing that is left there may go"
