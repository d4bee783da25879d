"""Sends tasks to a replica and reads what it streams back.

TorchServe's ways of failing (a 503, a 500 "Worker died.", a 507, a reset connection, an answer
that stops half way, a key that is no longer taken) all come down to :class:`WorkerLost`: the task
is not at fault and may go on elsewhere. What the handler itself refuses arrives as a
:class:`~handlers.wire.Failure` below 500 and is final. Closing the stream closes the connection,
by which TorchServe notices that nobody wants the answer.

It knows neither leases nor tasks.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from handlers.wire import Failure, Finish, Frame, decode_frame
from scheduler.errors import PlaitError
from scheduler.torchserve.endpoint import Endpoint, NotRunning

_CONNECT_TIMEOUT_S: Final = 5.0
#: Most of a body that is kept for an error message.
_MAX_ERROR_CHARS: Final = 300


class WorkerLost(PlaitError):
    """The replica did not finish the task, through no fault of the task."""

    status = 503

    def __init__(self, message: str, *, is_silent: bool = False) -> None:
        super().__init__(message)
        #: Whether nothing came for too long: its worker hangs, and TorchServe has not noticed.
        self.is_silent = is_silent


@dataclass(frozen=True, slots=True)
class Answer:
    """The whole answer of a model that does not stream."""

    document: dict[str, Any]


class Inference:
    """TorchServe's inference port."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def stream(
        self, replica: str, document: Mapping[str, Any], idle_timeout_s: float
    ) -> AsyncGenerator[Frame | Answer, None]:
        """What the replica answers: chunks, then a finish or a failure below 500; or one answer.

        It is lost when nothing at all comes for ``idle_timeout_s``.

        Raises:
            WorkerLost: it ended any other way; what was yielded before is good.
        """
        try:
            async with aclosing(self._attempt(replica, document, idle_timeout_s)) as frames:
                async for frame in frames:
                    yield frame
                    if not _goes_on(frame):
                        return
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            is_silent = isinstance(error, aiohttp.SocketTimeoutError)
            raise WorkerLost(f"{replica}: {_describe(error)}", is_silent=is_silent) from error
        except NotRunning as error:
            raise WorkerLost(f"{replica}: {error}") from error
        raise WorkerLost(f"{replica}: the answer ended without its last line")

    async def _attempt(
        self, replica: str, document: Mapping[str, Any], idle_timeout_s: float
    ) -> AsyncGenerator[Frame | Answer, None]:
        body = json.dumps(document, separators=(",", ":")).encode()
        for is_last in (False, True):
            response = await self._post(replica, body, idle_timeout_s)
            try:
                if response.status == 400 and not is_last and await _is_key_refused(response):
                    # Between our reading the file and TorchServe's replacing the key.
                    self._endpoint.forget()
                    continue
                async for line in _lines(response):
                    yield _parse(replica, response.status, line)
                if response.status == 413:
                    yield Failure(413, "the request is larger than TorchServe takes")
                return
            finally:
                response.close()

    async def _post(
        self, replica: str, body: bytes, idle_timeout_s: float
    ) -> aiohttp.ClientResponse:
        if self._session is None:
            # A connection for each request: one kept open may be closed by TorchServe just as the
            # next request is sent, which looks like a lost worker.
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(force_close=True, limit=0)
            )
        return await self._session.post(
            f"{self._endpoint.url('inference')}/predictions/{replica}",
            data=body,
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=_CONNECT_TIMEOUT_S, sock_read=idle_timeout_s
            ),
            headers={"Content-Type": "application/json", **self._endpoint.headers("inference")},
        )


async def _is_key_refused(response: aiohttp.ClientResponse) -> bool:
    return b"InvalidKeyException" in await response.read()


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The body's lines; TorchServe writes its own errors as JSON over several lines."""
    if response.status != 200:
        if body := (await response.read()).strip():
            yield body
        return
    rest = b""
    async for data in response.content.iter_any():
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line.strip():
                yield line
    if rest.strip():
        yield rest


def _parse(replica: str, status: int, line: bytes) -> Frame | Answer:
    try:
        frame = decode_frame(line)
    except ValueError:
        answer = _object(line)
        if status == 200 and answer is not None:
            return Answer(answer)
        if status == 200:
            # Cut off in the middle of a line: what is there is output, and not for logs.
            message = f"{replica}: the answer broke off in a line of {len(line)} bytes"
            raise WorkerLost(message) from None
        raise WorkerLost(f"{replica}: HTTP {status}: {_reason(answer, line)}") from None
    if isinstance(frame, Failure) and frame.status >= 500:
        raise WorkerLost(f"{replica}: {frame.message}")
    return frame


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(line)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _reason(answer: dict[str, Any] | None, line: bytes) -> str:
    """TorchServe's own words: ``{"code": ..., "type": ..., "message": ...}``."""
    if answer is not None and "message" in answer:
        return f"{answer['message']}"[:_MAX_ERROR_CHARS]
    return line.decode("utf-8", "replace")[:_MAX_ERROR_CHARS]


def _goes_on(frame: Frame | Answer) -> bool:
    return not isinstance(frame, Finish | Failure | Answer)


def _describe(error: BaseException) -> str:
    """In a word or two: the exact way in which a connection breaks tells nobody anything."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, aiohttp.ClientConnectorError):
        return "TorchServe does not take connections"
    if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ClientConnectionError | OSError):
        return "the worker died: the connection broke off"
    return str(error) or type(error).__name__
