"""A folder behind an HTTP server that answers ranges.

HTTP cannot list a folder. With a manifest beside the files it need not; without one, the names that
models' files go by are asked for. Their etags then pin them, and nothing vouches for them.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Final
from urllib.parse import quote

import aiohttp

from handlers.model_config import Source as Origin
from scheduler.sources import _manifest
from scheduler.sources._ranges import Ranges, broken, check_status
from scheduler.sources.base import Digest, Listing, Refused, RemoteFile, patiently

#: What a model's files are called.
KNOWN_NAMES: Final = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
)
INDEX_FILE: Final = "model.safetensors.index.json"
_MAX_INDEX_BYTES: Final = 64 * 1024 * 1024


class Source:
    """The files below a URL."""

    def __init__(self, origin: Origin) -> None:
        self._root = origin.location.rstrip("/")
        self._pinned = origin.manifest_sha256
        self._ranges = Ranges()

    def __repr__(self) -> str:
        return f"<Source http {self._root}>"

    async def list_files(self) -> Listing:
        where = self._url(_manifest.MANIFEST_FILE)
        body = await patiently(partial(self._ranges.get, where, _manifest.MAX_BYTES))
        if body is not None:
            manifest = _manifest.parse(body, where, self._pinned)
            files = await self._look(list(manifest.digests), manifest)
            if missing := sorted(manifest.digests.keys() - {file.path for file in files}):
                raise Refused(f"{self._root} lacks {missing[0]}, which its manifest names")
            return Listing(hashlib.sha256(body).hexdigest()[:16], files, manifest.chunks)
        if self._pinned:
            raise Refused(f"there is no {where}, and the model's YAML names its digest")
        files = await self._look([*KNOWN_NAMES, *await self._shards()], None)
        if not files:
            raise Refused(
                f"{self._root} has neither {_manifest.MANIFEST_FILE} nor any of: "
                f"{', '.join((*KNOWN_NAMES, INDEX_FILE))}"
            )
        versions = "\n".join(f"{file.path} {file.version}" for file in files)
        return Listing(hashlib.sha256(versions.encode()).hexdigest()[:16], files)

    async def _shards(self) -> list[str]:
        """The index of a model in several files, and those that it names."""
        url = self._url(INDEX_FILE)
        body = await patiently(partial(self._ranges.get, url, _MAX_INDEX_BYTES))
        if body is None:
            return []
        try:
            names = {str(name) for name in json.loads(body)["weight_map"].values()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise Refused(f"{self._url(INDEX_FILE)} is no index of safetensors files") from None
        if out := [name for name in names if not _manifest.is_inside(name)]:
            raise Refused(
                f"{self._url(INDEX_FILE)} names {out[0]!r}, which leads out of the folder"
            )
        return [INDEX_FILE, *sorted(names)]

    async def _look(
        self, paths: list[str], manifest: _manifest.Manifest | None
    ) -> tuple[RemoteFile, ...]:
        found = await asyncio.gather(
            *(patiently(partial(self._describe, path, manifest)) for path in paths)
        )
        return tuple(file for file in found if file is not None)

    async def _describe(self, path: str, manifest: _manifest.Manifest | None) -> RemoteFile | None:
        """A file as one range of it shows it; None when it is not there.

        Not HEAD: some servers refuse it, and this tells as well whether ranges are answered.
        """
        url = self._url(path)
        try:
            async with self._ranges.session.get(url, headers={"Range": "bytes=0-0"}) as response:
                if response.status in (404, 410):
                    return None
                if response.status == 416:  # an empty file has no first byte
                    return RemoteFile(path, 0, "empty", _digest(manifest, path), is_ranged=False)
                check_status(response, url)
                is_ranged = response.status == 206
                total = response.headers.get("Content-Range", "").rpartition("/")[2]
                size = int(total) if is_ranged and total.isdecimal() else response.content_length
                etag = response.headers.get("ETag", "")
                changed = response.headers.get("Last-Modified", "")
                if not is_ranged:
                    # Or the connection would be read to its end before it is used again.
                    response.close()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise broken(url, error) from error
        if size is None:
            raise Refused(f"{url}: the server does not tell its size")
        digest = _digest(manifest, path)
        if manifest is not None and manifest.sizes[path] != size:
            raise Refused(f"{url} has {size} bytes; the manifest says {manifest.sizes[path]}")
        return RemoteFile(path, size, etag or f"{changed}-{size}", digest, is_ranged)

    async def read(self, file: RemoteFile, start: int, end: int) -> AsyncIterator[bytes]:
        etag = file.version if file.version.startswith(('"', "W/")) else ""
        async for block in self._ranges.read(self._url(file.path), file, start, end, etag=etag):
            yield block

    def _url(self, path: str) -> str:
        return f"{self._root}/{quote(path)}"

    async def close(self) -> None:
        await self._ranges.close()


def _digest(manifest: _manifest.Manifest | None, path: str) -> Digest | None:
    return None if manifest is None else manifest.digests[path]
