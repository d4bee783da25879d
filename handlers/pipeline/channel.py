"""Messages between the driver and a stage's process: JSON values over a TCP connection.

Each message is its length, four bytes, then JSON. Nothing is pickled, so a peer can say wrong
things but not run code. A message is small (token ids, numbers); hidden states go another way.
The far end's death shows at once as the end of the stream.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Mapping
from typing import Any, Final

#: A message; what it may hold is said where it is read.
Message = dict[str, Any]

#: Far more than any message needs; a length beyond it means the stream is not ours.
MAX_BYTES: Final = 256 * 1024 * 1024
#: A peer that takes nothing for this long is gone.
SEND_WITHIN_S: Final = 10.0
_LENGTH: Final = struct.Struct("!I")
_READ_BYTES: Final = 1 << 18


class Closed(ConnectionError):
    """The far end is gone, or speaks another language."""


class Channel:
    """One connection; may be read by one thread while others send."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(SEND_WITHIN_S)
        self._connection = connection
        self._buffer = bytearray()
        self._sending = threading.Lock()

    def __repr__(self) -> str:
        return f"<Channel fd={self._connection.fileno()} unread={len(self._buffer)}>"

    @classmethod
    def connect(cls, host: str, port: int) -> Channel:
        """Reach whoever listens there.

        Raises:
            OSError: nobody does.
        """
        return cls(socket.create_connection((host, port), SEND_WITHIN_S))

    def fileno(self) -> int:
        return self._connection.fileno()

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message; waits only when the peer is far behind.

        Raises:
            Closed: the peer is gone or takes nothing.
        """
        body = json.dumps(message, separators=(",", ":")).encode()
        try:
            with self._sending:
                self._connection.sendall(_LENGTH.pack(len(body)) + body)
        except OSError as error:
            raise Closed(f"sending failed: {error}") from error

    def receive(self) -> list[Message]:
        """The messages that have come in whole, after waiting for some bytes.

        Raises:
            Closed: no more will come.
        """
        while True:
            try:
                received = self._connection.recv(_READ_BYTES)
                break
            except TimeoutError:
                continue
            except OSError as error:
                raise Closed(f"receiving failed: {error}") from error
        if not received:
            raise Closed("the connection was closed")
        self._buffer += received
        return self._whole()

    def close(self) -> None:
        """Hang up; a thread that is receiving is told."""
        with contextlib.suppress(OSError):  # the peer was faster
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _whole(self) -> list[Message]:
        messages: list[Message] = []
        start = 0
        while len(self._buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            if length > MAX_BYTES:
                raise Closed(f"a message of {length} bytes; allowed are {MAX_BYTES}")
            end = start + _LENGTH.size + length
            if len(self._buffer) < end:
                break
            messages.append(_read(self._buffer[start + _LENGTH.size : end]))
            start = end
        del self._buffer[:start]
        return messages


def _read(body: bytearray) -> Message:
    try:
        message = json.loads(body)
    except ValueError as error:
        raise Closed(f"not JSON: {error}") from None
    if not isinstance(message, dict):
        raise Closed(f"a message must be an object, not {type(message).__name__}")
    return message
