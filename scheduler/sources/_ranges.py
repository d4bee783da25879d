"""Reads ranges of bytes over HTTP, and says what went wrong in a source's words."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from typing import Final

import aiohttp

from scheduler.sources.base import Busy, Changed, Refused, RemoteFile

#: Seconds to connect, and without a byte, before a connection counts as broken.
CONNECT_S: Final = 15.0
SILENCE_S: Final = 20.0
#: Bytes that one connection reads ahead of whoever writes them to disk.
READ_AHEAD_BYTES: Final = 1024 * 1024
#: Answers that say "not now".
_NOT_NOW: Final = frozenset({408, 425, 429})
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class Ranges:
    """A session of HTTP connections."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    @property
    def session(self) -> aiohttp.ClientSession:
        """Opened at the first use: it needs a running loop."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S
                ),
                # How many run at once is decided by the downloader.
                connector=aiohttp.TCPConnector(limit=0),
                read_bufsize=READ_AHEAD_BYTES,
                # Bytes are counted and hashed as they are kept.
                auto_decompress=False,
                headers={"Accept-Encoding": "identity", "User-Agent": "plait"},
                trust_env=True,
            )
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(
        self, url: str, max_bytes: int, headers: Mapping[str, str] | None = None
    ) -> bytes | None:
        """A small file whole; None when there is none.

        Raises:
            Refused, Busy: as a source does; also when it is larger than ``max_bytes``.
        """
        try:
            async with self.session.get(url, headers=headers) as response:
                if response.status in (404, 410):
                    return None
                check_status(response, url)
                body = await response.content.read(max_bytes + 1)
                while len(body) <= max_bytes and (more := await response.content.read(max_bytes)):
                    body += more
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise broken(url, error) from error
        if len(body) > max_bytes:
            raise Refused(f"{url} is larger than the {max_bytes} bytes that are read of it")
        return body

    async def read(
        self,
        url: str,
        file: RemoteFile,
        start: int,
        end: int,
        headers: Mapping[str, str] | None = None,
        etag: str = "",
    ) -> AsyncIterator[bytes]:
        """The bytes of a range; ``etag`` is what it must be of, empty: whatever is there."""
        asked = dict(headers or {})
        if file.is_ranged:
            asked["Range"] = f"bytes={start}-{end - 1}"
        if etag and not etag.startswith("W/"):
            asked["If-Match"] = etag
        try:
            async with self.session.get(url, headers=asked) as response:
                _check_range(response, file, start, end, etag)
                async for block in response.content.iter_any():
                    yield block
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise broken(file.path, error) from error


def _check_range(
    response: aiohttp.ClientResponse, file: RemoteFile, start: int, end: int, etag: str
) -> None:
    if response.status in (412, 416):
        raise Changed(f"{file.path} has changed: {response.status} {response.reason}")
    check_status(response, file.path)
    there = response.headers.get("ETag", "")
    if etag and there and there != etag:
        raise Changed(f"{file.path} has changed: its etag is {there} and was {etag}")
    if not file.is_ranged:
        if response.content_length not in (None, file.size_bytes):
            raise Changed(
                f"{file.path} has {response.content_length} bytes; listed were {file.size_bytes}"
            )
        return
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if response.status != 206 or match is None:
        raise Busy(f"{file.path}: the server answered {response.status} to a range")
    if match[3] not in ("*", str(file.size_bytes)):
        raise Changed(f"{file.path} has {match[3]} bytes; listed were {file.size_bytes}")
    if (int(match[1]), int(match[2])) != (start, end - 1):
        raise Busy(f"{file.path}: asked for bytes {start}-{end - 1}, got {match[0]}")


def check_status(response: aiohttp.ClientResponse, what: str) -> None:
    """Raises what an answer without the bytes means."""
    if response.status < 400:
        return
    said = f"{what}: {response.status} {response.reason}"
    if response.status in _NOT_NOW or response.status >= 500:
        raise Busy(said, _retry_after_s(response.headers.get("Retry-After", "")))
    raise Refused(said)


def broken(what: str, error: BaseException) -> Busy:
    """A connection that failed, in a source's words."""
    return Busy(f"{what}: {str(error) or type(error).__name__}")


def _retry_after_s(text: str) -> float | None:
    """Seconds; the other form, a date, is not worth a clock here."""
    return float(text) if text.strip().isdecimal() else None
