"""The proxy that stands for the network of a chaos run breaks connections as networks do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
import pytest_asyncio

from scheduler.testing.chaos.cable import Cable
from tests.waiting import until

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Line:
    """A cable, and what arrived at its far end."""

    cable: Cable
    far: list[Ends] = field(default_factory=list)
    near: list[Ends] = field(default_factory=list)

    async def connect(self) -> tuple[Ends, Ends]:
        """A connection through the cable: near and far end."""
        count = len(self.far)
        near = await asyncio.open_connection("127.0.0.1", self.cable.port)
        self.near.append(near)
        await until(lambda: len(self.far) > count)
        return near, self.far[-1]


@pytest_asyncio.fixture
async def line() -> AsyncIterator[Line]:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line.far.append((reader, writer))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    probe = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = probe.sockets[0].getsockname()[1]
    probe.close()
    line = Line(Cable(port, server.sockets[0].getsockname()[1]))
    await line.cable.open()
    yield line
    await line.cable.close()
    for _, writer in line.far + line.near:
        writer.close()
    server.close()


async def test_what_is_sent_arrives_both_ways(line: Line) -> None:
    near, far = await line.connect()
    near[1].write(b"up")
    far[1].write(b"down")

    assert await far[0].readexactly(2) == b"up"
    assert await near[0].readexactly(4) == b"down"


async def test_a_cut_resets_both_ends(line: Line) -> None:
    near, far = await line.connect()

    assert line.cable.cut() == 1

    for reader, _ in (near, far):
        with pytest.raises(ConnectionResetError):
            await reader.read()


async def test_what_is_stalled_arrives_afterwards(line: Line) -> None:
    near, far = await line.connect()
    line.cable.stall()
    near[1].write(b"late")

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await far[0].read(4)
    line.cable.flow()

    assert await far[0].readexactly(4) == b"late"


async def test_of_a_half_open_connection_one_end_does_not_hear(line: Line) -> None:
    near, far = await line.connect()
    line.cable.half_open()

    with pytest.raises(ConnectionResetError):
        await far[0].read()
    near[1].write(b"to nobody")
    await near[1].drain()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await near[0].read()


async def test_a_refused_connection_is_reset(line: Line) -> None:
    line.cable.is_refusing = True
    near = await asyncio.open_connection("127.0.0.1", line.cable.port)
    line.near.append(near)

    with pytest.raises(ConnectionResetError):
        await near[0].read()


async def test_a_near_end_that_closes_ends_the_far_one(line: Line) -> None:
    near, far = await line.connect()
    near[1].close()

    assert await far[0].read() == b""
