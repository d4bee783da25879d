"""What a source of models' files is.

A source lists its files as they are at one moment, then hands out any range of their bytes as they
were at that moment. Every file has a *version*, which is another one as soon as its bytes are; most
have a digest to check them by. ``tests/contracts/test_source_contract.py`` holds every source to
this.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Protocol, TypeVar

from scheduler.errors import PlaitError

T = TypeVar("T")

SHA256: Final = "sha256"
#: What git calls a file: SHA-1 over a short header and the content.
GIT_SHA1: Final = "git-sha1"

#: Seconds between two questions to a source that is busy, and the longest it may ask for.
_PAUSES_S: Final = (0.1, 0.3, 1.0, 3.0)
_LONGEST_S: Final = 10.0


class SourceError(PlaitError):
    """A source did not give what was asked of it."""


class Refused(SourceError):
    """It will not give it however often it is asked; the message says what to change."""


class Busy(SourceError):
    """Not now: a connection broke, or the server is overloaded."""

    status = 503

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        """``retry_after_s``: None when the server did not say."""
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Changed(SourceError):
    """The file is another one than was listed: list again."""


@dataclass(frozen=True, slots=True)
class Digest:
    """What a file's bytes must hash to."""

    #: SHA256 or GIT_SHA1.
    algorithm: str
    #: Lower-case hexadecimal.
    value: str

    @property
    def name(self) -> str:
        """Names the content, in one word."""
        return f"{self.algorithm}-{self.value}"


def hasher(algorithm: str, size_bytes: int) -> Any:
    """Takes a whole file of that size by ``update`` and tells its digest by ``hexdigest``."""
    if algorithm == GIT_SHA1:
        return hashlib.sha1(b"blob %d\0" % size_bytes, usedforsecurity=False)
    return hashlib.sha256()


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a source, as it was when it was listed."""

    #: Path below the source's root, with slashes.
    path: str
    size_bytes: int
    #: Another one as soon as the bytes are: an etag, a commit, a time of change.
    version: str
    #: None: the source tells none.
    digest: Digest | None = None
    #: Whether parts of it can be asked for.
    is_ranged: bool = True


@dataclass(frozen=True, slots=True)
class ChunkDigests:
    """SHA-256 of each piece of ``chunk_bytes`` bytes of a file, the last one shorter."""

    chunk_bytes: int
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a source at one moment."""

    #: What the source was at that moment: a commit, or a hash of all versions.
    revision: str
    files: tuple[RemoteFile, ...]
    #: By path, of files whose source has a manifest.
    chunk_digests: Mapping[str, ChunkDigests] = field(default_factory=lambda: MappingProxyType({}))


async def patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """What ``ask`` answers, asked again a few times while its source is busy.

    Raises:
        Busy: it still was after several seconds.
    """
    for pause_s in _PAUSES_S:
        try:
            return await ask()
        except Busy as error:
            await asyncio.sleep(max(pause_s, min(error.retry_after_s or 0.0, _LONGEST_S)))
    return await ask()


class Source(Protocol):
    """One place with a model's files."""

    async def list_files(self) -> Listing:
        """The files there are now, those excepted that no model needs.

        Raises:
            Refused: there is no such place, or it is not open to us.
            Busy: it cannot be reached now.
        """
        ...

    def read(self, file: RemoteFile, start: int, end: int) -> AsyncIterator[bytes]:
        """The bytes from ``start`` to before ``end`` of a listed file, block by block.

        A stream that ends early ends without an error; the caller counts. A file that is not
        ranged is read from 0 to its end only.

        Raises:
            Changed: the file is not the one that was listed.
            Refused: it is gone, or not open to us any more.
            Busy: the connection broke, stalled, or was not accepted.
        """
        ...

    async def close(self) -> None:
        """Give back connections."""
        ...
