"""A TCP proxy that stands for the network between two processes, and fails as networks do.

Connections can be *cut* (both ends see a reset), *stalled* (nothing passes, nobody is told),
*half open* (one end was told that the other is gone, the other was not), *delayed*, and *refused*.
What is delayed or stalled arrives in order, and later.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from dataclasses import dataclass, field

_READ_BYTES = 65_536


@dataclass(slots=True, eq=False)
class _Connection:
    near: asyncio.StreamWriter
    far: asyncio.StreamWriter
    pumps: list[asyncio.Task[None]] = field(default_factory=list)


class Cable:
    """Listens on ``port`` and passes everything on to ``target_port``, both on loopback."""

    def __init__(self, port: int, target_port: int) -> None:
        self.port, self._target_port = port, target_port
        self.delay_s = 0.0
        self.is_refusing = False
        self._flows = asyncio.Event()
        self._flows.set()
        self._connections: set[_Connection] = set()
        self._carrying: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    def __repr__(self) -> str:
        return f"<Cable {self.port} connections={len(self._connections)}>"

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", self.port)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._carrying:
            task.cancel()
        await asyncio.gather(*self._carrying, return_exceptions=True)

    def cut(self) -> int:
        """Reset every connection; how many there were."""
        connections = list(self._connections)
        for connection in connections:
            _reset(connection.near)
            _reset(connection.far)
        return len(connections)

    @property
    def is_stalled(self) -> bool:
        return not self._flows.is_set()

    def stall(self) -> None:
        """Let nothing pass until :meth:`flow`."""
        self._flows.clear()

    def flow(self) -> None:
        self._flows.set()

    def half_open(self) -> int:
        """Tell the far end of every connection that it is over, and not the near one; how many."""
        connections = list(self._connections)
        for connection in connections:
            for pump in connection.pumps:
                pump.cancel()
            _reset(connection.far)
        return len(connections)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._carry(reader, writer))
        self._carrying.add(task)
        task.add_done_callback(self._carrying.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_refusing:
            _reset(writer)
            return
        try:
            await self._flows.wait()
            far_reader, far = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            _reset(writer)
            return
        except asyncio.CancelledError:
            _reset(writer)
            raise
        connection = _Connection(writer, far)
        self._connections.add(connection)
        connection.pumps = [
            asyncio.create_task(self._pump(reader, far)),
            asyncio.create_task(self._pump(far_reader, writer)),
        ]
        try:
            await asyncio.wait(connection.pumps)
            if any(pump.cancelled() for pump in connection.pumps):
                await self._hold(reader)
        finally:
            for pump in connection.pumps:
                pump.cancel()
            self._connections.discard(connection)
            _reset(writer)
            _reset(far)

    async def _hold(self, reader: asyncio.StreamReader) -> None:
        """Keep a near end that knows nothing, until it gives up by itself."""
        with contextlib.suppress(OSError):
            while await reader.read(_READ_BYTES):
                pass

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(_READ_BYTES):
                await self._flows.wait()
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                writer.write(data)
                await writer.drain()
            await self._flows.wait()
            writer.write_eof()
        except OSError:
            # One end is gone, so the other is to hear of it; its pump ends with that.
            _reset(writer)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close so that the other end sees a reset."""
    if (connection := writer.get_extra_info("socket")) is not None:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
