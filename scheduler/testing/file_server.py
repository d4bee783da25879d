"""An HTTP server with files, as bad as a test or benchmark wants it.

It answers ranges with etags and honours ``If-Match``. A share of its answers breaks off half way or
is an error, another share is slow; one may be garbled. ``serve_hub`` makes it speak the documented
API of the Hugging Face hub for one repository, with the redirect to another address that real
files come by.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from aiohttp import web

_BLOCK_BYTES: Final = 64 * 1024
_RANGE: Final = re.compile(r"bytes=(\d+)-(\d*)")
#: Files from this size on are kept in large-file storage by the hub double.
LFS_FROM_BYTES: Final = 4096


@dataclass
class Faults:
    """What goes wrong; shares are of all answers that have a body."""

    failing_share: float = 0.0
    slow_share: float = 0.0
    #: Bytes per second of a slow answer.
    slow_bytes_per_s: float = 64 * 1024
    #: Bytes per second of every other answer; 0: as fast as it goes.
    bytes_per_s: float = 0.0
    seed: int = 0
    #: Names of files of which the next answer has a wrong byte.
    garble: list[str] = field(default_factory=list)
    #: Everything is refused with this status; 0: nothing.
    status: int = 0


class FileServer:
    """Serves the files of a folder."""

    def __init__(self, root: Path, faults: Faults | None = None) -> None:
        self.root = root
        self.faults = faults or Faults()
        #: Path and range (first byte and the one after the last) of every answer with a body.
        self.answered: list[tuple[str, int, int]] = []
        self.num_broken = 0
        self.num_slow = 0
        #: Whether it answers ranges at all.
        self.has_ranges = True
        self._random = random.Random(self.faults.seed)
        self._app = web.Application()
        self._runner = web.AppRunner(self._app, access_log=None, shutdown_timeout=0.1)
        self._app.router.add_get("/files/{path:.*}", self._get)
        self.url = ""
        self.port = 0

    async def start(self, port: int = 0) -> None:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port).start()
        self.port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self.port}/files"

    async def stop(self) -> None:
        await self._runner.cleanup()

    def serve_hub(self, repo: str, commit: str = "c0ffee" + "0" * 34) -> None:
        """Speak for the hub as well, with the root as ``repo``; before :meth:`start`."""
        add = self._app.router.add_get
        hub = _Hub(self, repo, commit)
        add("/api/models/{repo:[^/]+/[^/]+}", hub.info)
        add("/api/models/{repo:[^/]+/[^/]+}/revision/{revision}", hub.info)
        add("/{repo:[^/]+/[^/]+}/resolve/{revision}/{path:.*}", hub.resolve)

    def etag(self, path: Path) -> str:
        status = path.stat()
        return f'"{status.st_mtime_ns:x}-{status.st_size:x}"'

    async def _get(self, request: web.Request) -> web.StreamResponse:
        path = self.root / request.match_info["path"]
        if self.faults.status:
            return web.Response(status=self.faults.status)
        if not path.is_file():
            return web.Response(status=404)
        size, etag = path.stat().st_size, self.etag(path)
        wanted = request.headers.get("If-Match")
        if wanted is not None and wanted != etag:
            return web.Response(status=412)
        start, end, status = 0, size, 200
        match = _RANGE.fullmatch(request.headers.get("Range", ""))
        if match is not None and self.has_ranges:
            start, end = int(match[1]), min(int(match[2] or size - 1) + 1, size)
            if start >= size:
                return web.Response(status=416, headers={"Content-Range": f"bytes */{size}"})
            status = 206
        headers = {"ETag": etag, "Accept-Ranges": "bytes", "Content-Length": str(end - start)}
        if status == 206:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        response = web.StreamResponse(status=status, headers=headers)
        if request.method == "HEAD":
            await response.prepare(request)
            return response
        return await self._send(request, response, path, start, end)

    async def _send(
        self, request: web.Request, response: web.StreamResponse, path: Path, start: int, end: int
    ) -> web.StreamResponse:
        name = path.relative_to(self.root).as_posix()
        self.answered.append((name, start, end))
        stop = end
        if self._random.random() < self.faults.failing_share:
            self.num_broken += 1
            if self._random.random() < 0.5:
                return web.Response(status=503)
            stop = start + int((end - start) * self._random.random())
        pace = self.faults.bytes_per_s
        if self._random.random() < self.faults.slow_share:
            self.num_slow += 1
            pace = self.faults.slow_bytes_per_s
        is_garbled = name in self.faults.garble
        if is_garbled:
            self.faults.garble.remove(name)
        # A client that is killed is what this is for.
        with contextlib.suppress(ConnectionError):
            await response.prepare(request)
            with path.open("rb") as file:
                file.seek(start)
                at = start
                while at < stop:
                    block = file.read(min(_BLOCK_BYTES, stop - at))
                    if is_garbled:
                        block, is_garbled = bytes([block[0] ^ 1]) + block[1:], False
                    await response.write(block)
                    at += len(block)
                    if pace:
                        await asyncio.sleep(len(block) / pace)
        if stop < end and request.transport is not None:
            request.transport.abort()
        return response


class _Hub:
    """One repository as the hub's API tells of it."""

    def __init__(self, server: FileServer, repo: str, commit: str) -> None:
        self._server, self._repo, self._commit = server, repo, commit

    async def info(self, request: web.Request) -> web.Response:
        if self._server.faults.status:
            return web.Response(status=self._server.faults.status)
        if request.match_info["repo"] != self._repo:
            return _missing("RepoNotFound")
        if request.match_info.get("revision", "main") not in ("main", self._commit):
            return _missing("RevisionNotFound")
        with_blobs = request.query.get("blobs") in ("true", "True", "1")
        siblings = [
            self._sibling(path, with_blobs)
            for path in sorted(self._server.root.rglob("*"))
            if path.is_file()
        ]
        return web.json_response(
            {
                "_id": "0", "id": self._repo, "modelId": self._repo, "sha": self._commit,
                "private": False, "gated": False, "disabled": False, "tags": [],
                "siblings": siblings,
            }
        )  # fmt: skip

    def _sibling(self, path: Path, with_blobs: bool) -> dict[str, Any]:
        sibling: dict[str, Any] = {"rfilename": path.relative_to(self._server.root).as_posix()}
        if with_blobs:
            body = path.read_bytes()
            header = b"blob %d\0" % len(body)
            oid = hashlib.sha1(header + body, usedforsecurity=False).hexdigest()
            sibling |= {"size": len(body), "blobId": oid}
            if len(body) >= LFS_FROM_BYTES:
                digest = hashlib.sha256(body).hexdigest()
                sibling["lfs"] = {"sha256": digest, "size": len(body), "pointerSize": 134}
        return sibling

    async def resolve(self, request: web.Request) -> web.StreamResponse:
        path = self._server.root / request.match_info["path"]
        if request.match_info["repo"] != self._repo:
            return _missing("RepoNotFound")
        if not path.is_file():
            return _missing("EntryNotFound")
        body = path.read_bytes()
        if len(body) >= LFS_FROM_BYTES:
            etag = hashlib.sha256(body).hexdigest()
        else:
            header = b"blob %d\0" % len(body)
            etag = hashlib.sha1(header + body, usedforsecurity=False).hexdigest()
        headers = {
            "X-Repo-Commit": self._commit,
            "X-Linked-Etag": f'"{etag}"',
            "X-Linked-Size": str(len(body)),
            # Another name of this machine, as a content network is another host.
            "Location": f"http://localhost:{self._server.port}/files/{request.match_info['path']}",
        }
        return web.Response(status=302, headers=headers)


def _missing(code: str) -> web.Response:
    return web.json_response({"error": "not found"}, status=404, headers={"X-Error-Code": code})
