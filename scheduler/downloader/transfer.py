"""Moves pieces of files over a number of connections that all files share.

A free connection takes the next piece of the file that is most urgent, so a model needed now
overtakes what is fetched ahead at the next piece. A connection that breaks gives back its piece,
which goes on from the byte it had reached, on another connection, after a pause that doubles; one
that is far slower than the others is cut off in the same way. A file gives up when a piece has
failed too often in a row, or the source refuses.

It knows bytes and pieces, and neither models nor digests of whole files.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final, TypeVar

import structlog

from scheduler.clock import Clock
from scheduler.downloader.bandwidth import Bandwidth
from scheduler.downloader.layout import Piece
from scheduler.downloader.part import Part
from scheduler.sources.base import Busy, Refused, RemoteFile, Source

log = structlog.get_logger(__name__)

T = TypeVar("T")

#: Failures of one piece in a row, without a byte in between, after which its file gives up.
MOST_FAILURES: Final = 8
#: Times a piece may come otherwise than its digest says.
MOST_CORRUPT: Final = 3
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 30.0
#: Bytes collected before they are written, in one go and in a thread.
_WRITE_BYTES: Final = 1024 * 1024
#: A connection is cut off for slowness when it has been at a piece for so long, at less than this
#: share of what the middle one does, and would be for longer than a new one takes.
_SLOW_AFTER_S: Final = 1.0
_SLOW_SHARE: Final = 0.2
_WATCH_S: Final = 0.25
#: Times a piece is taken from slow connections; then its last one may be as slow as it is.
_MOST_CUT_OFF: Final = 4
#: How many speeds the middle one is taken of, and the least.
_NUM_SPEEDS: Final = 32
_LEAST_SPEEDS: Final = 3

#: Smaller is more urgent.
Urgency = tuple[int, int]


@dataclass(slots=True)
class Counters:
    """What happened since the start of the process."""

    num_bytes: int = 0
    num_failures: int = 0
    num_cut_off: int = 0
    num_corrupt: int = 0


@dataclass(slots=True, eq=False)
class _Work:
    """A piece, and how far it is."""

    piece: Piece
    #: Byte of the source's file that is written next.
    at: int
    crc: int = 0
    #: Digest of the piece's bytes so far.
    whole: Any = field(default_factory=hashlib.sha256)
    num_failures: int = 0
    num_corrupt: int = 0
    num_cut_off: int = 0
    not_before: float = 0.0
    #: Of the connection that is at it: since when, and the bytes that came on it.
    since: float = 0.0
    num_bytes: int = 0
    reader: asyncio.Task[None] | None = None
    is_cut_off: bool = False

    def begin(self) -> None:
        """Start from the piece's first byte."""
        self.at, self.crc, self.whole = self.piece.start, 0, hashlib.sha256()


@dataclass(slots=True, eq=False)
class _File:
    """The pieces of one file that are to come."""

    source: Source
    file: RemoteFile
    part: Part
    urgency: Callable[[], Urgency]
    recorded: Callable[[], None]
    #: Done when all pieces are whole, or with the reason why they will not be.
    done: asyncio.Future[None]
    waiting: deque[_Work]
    active: set[_Work] = field(default_factory=set)


class Transfer:
    """The connections of one process."""

    def __init__(
        self,
        clock: Clock,
        num_connections: int,
        bandwidth: Bandwidth,
        *,
        first_pause_s: float = _FIRST_PAUSE_S,
    ) -> None:
        self._clock, self._bandwidth = clock, bandwidth
        self._num_connections, self._first_pause_s = num_connections, first_pause_s
        self._files: list[_File] = []
        self._wake = asyncio.Event()
        #: Bytes per second of connections that have brought a piece.
        self._speeds: deque[float] = deque(maxlen=_NUM_SPEEDS)
        self.counters = Counters()

    def __repr__(self) -> str:
        active = sum(len(each.active) for each in self._files)
        return f"<Transfer files={len(self._files)} active={active}/{self._num_connections}>"

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._num_connections):
                group.create_task(self._connection(), name=f"download {number}")
            group.create_task(self._watch(), name="slow downloads")

    async def fetch(
        self,
        source: Source,
        file: RemoteFile,
        part: Part,
        urgency: Callable[[], Urgency],
        recorded: Callable[[], None],
    ) -> None:
        """Fetch what a part is missing; ``recorded`` is called after each piece.

        Raises:
            Refused, Busy, Changed: as the source does, once trying again has not helped.
            OSError: the disk does not take it.
        """
        waiting = deque(_Work(piece, piece.start) for piece in part.missing)
        if not waiting:
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        each = _File(source, file, part, urgency, recorded, done, waiting)
        self._files.append(each)
        self._wake.set()
        try:
            await done
        finally:
            self._files.remove(each)
            readers = [work.reader for work in each.active if work.reader is not None]
            for reader in readers:
                reader.cancel()
            # The part is closed by whoever asked: nobody may write to it afterwards.
            await asyncio.gather(*readers, return_exceptions=True)

    def bytes_under_way(self, part: Part) -> int:
        """Bytes of a part that have come of pieces that are not whole yet."""
        return sum(
            work.at - work.piece.start
            for each in self._files
            if each.part is part
            for work in (*each.waiting, *each.active)
        )

    # -- one connection

    async def _connection(self) -> None:
        while True:
            each, work = await self._next()
            each.active.add(work)
            work.since, work.num_bytes, work.is_cut_off = self._clock.monotonic(), 0, False
            work.reader = asyncio.create_task(self._read(each, work), name=each.file.path)
            try:
                await asyncio.wait({work.reader})
            except asyncio.CancelledError:
                work.reader.cancel()
                await asyncio.gather(work.reader, return_exceptions=True)
                raise
            each.active.discard(work)
            self._settle(each, work, work.reader)
            work.reader = None

    async def _next(self) -> tuple[_File, _Work]:
        """Wait for the most urgent piece that may be asked for."""
        while True:
            now, pause_s = self._clock.monotonic(), _LONGEST_PAUSE_S
            for each in sorted(self._files, key=lambda each: each.urgency()):
                for work in each.waiting:
                    if work.not_before <= now:
                        each.waiting.remove(work)
                        return each, work
                    pause_s = min(pause_s, work.not_before - now)
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()

    async def _read(self, each: _File, work: _Work) -> None:
        piece = work.piece
        if not each.file.is_ranged:
            work.begin()
        blocks: list[bytes] = []
        size, room = 0, piece.end - work.at
        try:
            stream = each.source.read(each.file, work.at, piece.end)
            async with contextlib.aclosing(stream) as blocks_of_stream:  # type: ignore[type-var]  # sources' readers are generators
                async for block in blocks_of_stream:
                    await self._bandwidth.take(len(block))
                    work.num_bytes += len(block)
                    blocks.append(block[: room - size])
                    size += len(blocks[-1])
                    if size >= _WRITE_BYTES:
                        blocks, size, room = await self._keep(each, work, blocks), 0, room - size
        except Busy:
            await self._keep(each, work, blocks)
            raise
        await self._keep(each, work, blocks)
        if work.at < piece.end:
            raise Busy(f"{each.file.path}: the connection ended at byte {work.at} of {piece.end}")
        if piece.sha256 and work.whole.hexdigest() != piece.sha256:
            self._corrupt(each, work)
        each.part.record(piece, work.crc)
        each.recorded()

    async def _keep(self, each: _File, work: _Work, blocks: list[bytes]) -> list[bytes]:
        """Write what has come; returns a new place to collect in."""
        if blocks:
            await finished(asyncio.to_thread(self._write, each.part, work, b"".join(blocks)))
        return []

    def _write(self, part: Part, work: _Work, block: bytes) -> None:
        if work.piece.sha256:
            work.whole.update(block)
        work.crc = part.write(block, work.at, work.piece.kept, work.crc)
        work.at += len(block)
        self.counters.num_bytes += len(block)

    def _corrupt(self, each: _File, work: _Work) -> None:
        piece = work.piece
        work.num_corrupt += 1
        self.counters.num_corrupt += 1
        found = work.whole.hexdigest()
        work.begin()
        said = (
            f"{each.file.path}: bytes {piece.start} to {piece.end} have sha256 {found}; "
            f"the manifest says {piece.sha256}"
        )
        log.warning("download_corrupt", file=each.file.path, start=piece.start, end=piece.end)
        if work.num_corrupt >= MOST_CORRUPT:
            raise Refused(f"{said}, and that {MOST_CORRUPT} times")
        raise Busy(said)

    # -- what became of it

    def _settle(self, each: _File, work: _Work, reader: asyncio.Task[None]) -> None:
        if each.done.done():
            return
        if reader.cancelled():
            if work.is_cut_off:
                work.num_cut_off += 1
                self.counters.num_cut_off += 1
                self._again(each, work, 0.0)
            return
        error = reader.exception()
        if error is None:
            self._note_speed(work)
            if not each.waiting and not each.active:
                each.done.set_result(None)
        elif isinstance(error, Busy):
            self._failed(each, work, error)
        else:
            each.done.set_exception(error)

    def _failed(self, each: _File, work: _Work, error: Busy) -> None:
        self.counters.num_failures += 1
        work.num_failures = 1 if work.num_bytes else work.num_failures + 1
        if work.num_failures >= MOST_FAILURES:
            each.done.set_exception(error)
            return
        pause_s = min(self._first_pause_s * 2 ** (work.num_failures - 1), _LONGEST_PAUSE_S)
        # Those that were refused together must not come back together.
        pause_s *= random.uniform(0.5, 1.5)
        pause_s = max(pause_s, error.retry_after_s or 0.0)
        log.debug("download_interrupted", file=each.file.path, why=str(error), retry_s=pause_s)
        self._again(each, work, pause_s)

    def _again(self, each: _File, work: _Work, pause_s: float) -> None:
        work.not_before = self._clock.monotonic() + pause_s
        each.waiting.appendleft(work)
        self._wake.set()

    # -- connections that are too slow

    def _note_speed(self, work: _Work) -> None:
        took_s = self._clock.monotonic() - work.since
        if work.num_bytes >= _WRITE_BYTES and took_s > 0:
            self._speeds.append(work.num_bytes / took_s)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_S)
            now = self._clock.monotonic()
            active = [work for each in self._files for work in each.active]
            old = [work for work in active if now - work.since >= _SLOW_AFTER_S]
            speeds = {work: work.num_bytes / (now - work.since) for work in old}
            known = [*self._speeds, *speeds.values()]
            if len(known) < _LEAST_SPEEDS:
                continue
            least = median(known) * _SLOW_SHARE
            for work, speed in speeds.items():
                rest_s = (work.piece.end - work.at) / max(speed, 1.0)
                is_slow = speed < least and rest_s > _SLOW_AFTER_S
                if is_slow and work.num_cut_off < _MOST_CUT_OFF and work.reader is not None:
                    work.is_cut_off = True
                    work.reader.cancel()


async def finished(work: Coroutine[Any, Any, T]) -> T:
    """Await what cannot be stopped half way, such as a thread, even when cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return task.result()
