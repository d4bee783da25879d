"""Brings single files into the cache, each once whoever wants it.

Models that want the same file share one fetch of it; processes that do share the lock of its key,
and whoever has to wait finds the file there afterwards, or goes on where the other was killed. A
file is hashed while it comes, from its first byte on as far as it is there without a gap.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import structlog

from handlers.model_config import Source as Origin
from scheduler.downloader.cache import Cache
from scheduler.downloader.layout import Content, pieces, whole
from scheduler.downloader.part import Part
from scheduler.downloader.transfer import Transfer, Urgency, finished
from scheduler.sources.base import SHA256, ChunkDigests, Refused, RemoteFile, Source, hasher

log = structlog.get_logger(__name__)

#: Width of the grid that files are fetched on, in bytes, where no manifest says it.
PIECE_BYTES: Final = 16 * 1024 * 1024
#: Seconds between two looks at a file that another process fetches.
_OTHERS_POLL_S: Final = 0.2
#: Times a file that is whole may hash to something else.
_MOST_MISMATCHES: Final = 2


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file as this machine is to hold it."""

    origin: Origin
    source: Source
    file: RemoteFile
    content: Content
    digests: ChunkDigests | None = None

    @property
    def is_whole(self) -> bool:
        """Whether it is the source's file as it is."""
        return self.content == whole(self.file.size_bytes)

    @property
    def key(self) -> str:
        """The same for the same bytes: the digest where one is known, else where they are from."""
        if self.is_whole and self.file.digest is not None:
            return self.file.digest.name
        where = [self.origin.kind, self.origin.location, self.file.path, self.file.version]
        segments = [(s.source_start, s.size_bytes) for s in self.content.segments]
        text = json.dumps([where, self.file.size_bytes, self.content.head.hex(), segments])
        return f"from-{hashlib.sha256(text.encode()).hexdigest()}"


@dataclass(slots=True, eq=False)
class _Fetch:
    """A file that is being fetched, and who wants it how urgently."""

    #: Whose source it is read from.
    beginner: object
    claims: dict[object, Callable[[], Urgency]] = field(default_factory=dict)
    task: asyncio.Task[str] | None = None
    part: Part | None = None
    is_elsewhere: bool = False

    def urgency(self) -> Urgency:
        return min((urgency() for urgency in self.claims.values()), default=(2, 0))


class Files:
    """The files of one cache that are being fetched by this process."""

    def __init__(self, cache: Cache, transfer: Transfer, piece_bytes: int = PIECE_BYTES) -> None:
        self._cache, self._transfer, self._piece_bytes = cache, transfer, piece_bytes
        self._fetches: dict[str, _Fetch] = {}

    def __repr__(self) -> str:
        return f"<Files fetching={len(self._fetches)}>"

    async def bring(
        self, wanted: Wanted, staging: str, claim: object, urgency: Callable[[], Urgency]
    ) -> str:
        """Have a file in the cache, linked in a staging folder; the name of its blob.

        Raises:
            Refused, Busy, Changed: as its source does. Refused also when its bytes hash to
                something else than they should.
            OSError: the disk does not take it.
        """
        key = wanted.key
        while True:
            name = await asyncio.to_thread(self._cache.recall, key)
            if name is None:
                name = await self._join(key, wanted, staging, claim, urgency)
            if name is not None and await asyncio.to_thread(self._cache.stage, staging, name):
                return name

    def held_bytes(self, wanted: Wanted) -> int:
        """Bytes of a file that have come so far, of one that is being fetched."""
        fetch = self._fetches.get(wanted.key)
        if fetch is None or fetch.part is None:
            return 0
        return fetch.part.held_bytes + self._transfer.bytes_under_way(fetch.part)

    def is_elsewhere(self, wanted: Wanted) -> bool:
        """Whether another process is fetching a file."""
        fetch = self._fetches.get(wanted.key)
        return fetch is not None and fetch.is_elsewhere

    async def _join(
        self, key: str, wanted: Wanted, staging: str, claim: object, urgency: Callable[[], Urgency]
    ) -> str | None:
        """Wait for a fetch, which the first to come begins; None: it was stopped, begin another."""
        fetch = self._fetches.get(key)
        if fetch is None:
            fetch = self._fetches[key] = _Fetch(claim)
            fetch.task = asyncio.create_task(self._fetch(key, wanted, staging, fetch), name=key)
        assert fetch.task is not None
        fetch.claims[claim] = urgency
        try:
            await asyncio.wait({fetch.task})
        finally:
            del fetch.claims[claim]
            # It reads from the source of whoever began it, and ends with them.
            if fetch.beginner is claim:
                self._fetches.pop(key, None)
                fetch.task.cancel()
                await finished(asyncio.wait({fetch.task}))
        return None if fetch.task.cancelled() else fetch.task.result()

    async def _fetch(self, key: str, wanted: Wanted, staging: str, fetch: _Fetch) -> str:
        while (lock := self._cache.lock(key)) is None:
            fetch.is_elsewhere = True
            await asyncio.sleep(_OTHERS_POLL_S)
        fetch.is_elsewhere = False
        try:
            # Whoever had the lock may have finished it.
            name = self._cache.recall(key)
            return name or await self._fetch_locked(key, wanted, staging, fetch)
        finally:
            self._cache.unlock(lock, key)

    async def _fetch_locked(self, key: str, wanted: Wanted, staging: str, fetch: _Fetch) -> str:
        file, content = wanted.file, wanted.content
        cut = pieces(content, file.size_bytes, self._piece_bytes, wanted.digests, file.is_ranged)
        part = Part(self._cache.parts, key, content, cut)
        try:
            await finished(asyncio.to_thread(part.open))
            fetch.part = part
            name = await self._fill(wanted, part, fetch)
            await finished(asyncio.to_thread(part.sync))
            self._cache.remember(key, name)
            await finished(asyncio.to_thread(self._cache.stage, staging, name, part))
            log.info("file_fetched", file=file.path, num_bytes=content.size_bytes, blob=name)
            return name
        finally:
            part.close()

    async def _fill(self, wanted: Wanted, part: Part, fetch: _Fetch) -> str:
        """Fetch what is missing until all of it hashes to what it should; the blob's name."""
        expected = wanted.file.digest if wanted.is_whole else None
        if expected is None:
            return f"{SHA256}-{await self._fetch_and_hash(wanted, part, fetch, SHA256)}"
        for _ in range(_MOST_MISMATCHES):
            found = await self._fetch_and_hash(wanted, part, fetch, expected.algorithm)
            if found == expected.value:
                return expected.name
            num_damaged = await finished(asyncio.to_thread(part.drop_damaged))
            log.warning(
                "download_mismatched", file=wanted.file.path, found=found,
                expected=expected.value, num_damaged=num_damaged,
            )  # fmt: skip
            if not num_damaged:
                # Nothing tells which bytes came wrong.
                part.drop_all()
        part.discard()
        raise Refused(
            f"{wanted.file.path} has {expected.algorithm} {found} as it came; its source says "
            f"{expected.value}, and fetching it again did not help"
        )

    async def _fetch_and_hash(
        self, wanted: Wanted, part: Part, fetch: _Fetch, algorithm: str
    ) -> str:
        grown = asyncio.Event()
        hashing = asyncio.create_task(_hash(part, algorithm, grown), name="hash")
        try:
            await self._transfer.fetch(wanted.source, wanted.file, part, fetch.urgency, grown.set)
            grown.set()
            return await hashing
        finally:
            hashing.cancel()
            await asyncio.wait({hashing})


async def _hash(part: Part, algorithm: str, grown: asyncio.Event) -> str:
    """The digest of a part, taken as it grows."""
    size = part.content.size_bytes
    whole, at = hasher(algorithm, size), 0
    while at < size:
        grown.clear()
        if (end := part.prefix_bytes) > at:
            await finished(asyncio.to_thread(part.hash_on, whole, at, end))
            at = end
        else:
            await grown.wait()
    return str(whole.hexdigest())
