"""A folder that every machine sees, such as one on a network file system."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from handlers.model_config import Source as Origin
from scheduler.sources import _manifest
from scheduler.sources.base import Busy, Changed, Listing, Refused, RemoteFile

_BLOCK_BYTES: Final = 1024 * 1024


class Source:
    """The files below a folder; a manifest in it is used for its digests."""

    def __init__(self, origin: Origin) -> None:
        self._root = Path(origin.location)
        self._pinned = origin.manifest_sha256

    def __repr__(self) -> str:
        return f"<Source folder {self._root}>"

    async def list_files(self) -> Listing:
        return await asyncio.to_thread(self._list)

    def _list(self) -> Listing:
        if not self._root.is_dir():
            raise Refused(f"there is no folder {self._root}")
        manifest = self._manifest()
        files = []
        for path in sorted(self._root.rglob("*")):
            inside = path.relative_to(self._root).as_posix()
            if not path.is_file() or any(part.startswith(".") for part in inside.split("/")):
                continue
            version, size = _version(path)
            digest = manifest.digests.get(inside)
            if digest is not None and manifest.sizes[inside] != size:
                raise Refused(f"{path} has {size} bytes; {_manifest.MANIFEST_FILE} says otherwise")
            if self._pinned and digest is None:
                continue
            files.append(RemoteFile(inside, size, version, digest))
        return Listing(_revision(files), tuple(files), manifest.chunks)

    def _manifest(self) -> _manifest.Manifest:
        path = self._root / _manifest.MANIFEST_FILE
        if not path.is_file():
            if self._pinned:
                raise Refused(f"{path} is not there, and the model's YAML names its digest")
            return _manifest.Manifest({}, {}, {})
        return _manifest.parse(path.read_bytes(), str(path), self._pinned)

    async def read(self, file: RemoteFile, start: int, end: int) -> AsyncIterator[bytes]:
        path = self._root / file.path
        try:
            opened = await asyncio.to_thread(path.open, "rb")
        except FileNotFoundError:
            raise Changed(f"{path} is gone") from None
        except OSError as error:
            raise Busy(f"{path}: {error.strerror}") from error
        with opened:
            if _version(path)[0] != file.version:
                raise Changed(f"{path} has changed")
            at = start
            while at < end:
                size = min(_BLOCK_BYTES, end - at)
                try:
                    block = await asyncio.to_thread(os.pread, opened.fileno(), size, at)
                except OSError as error:
                    raise Busy(f"{path}: {error.strerror}") from error
                if not block:
                    return
                at += len(block)
                yield block

    async def close(self) -> None:
        """Nothing is kept open."""


def _version(path: Path) -> tuple[str, int]:
    """What changes with a file's bytes, and its size."""
    status = path.stat()
    return f"{status.st_mtime_ns}-{status.st_size}", status.st_size


def _revision(files: list[RemoteFile]) -> str:
    text = "\n".join(f"{file.path} {file.version}" for file in files)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
