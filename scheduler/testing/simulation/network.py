"""The network: calls that are lost, late, doubled or overtake each other, and streams that break.

A call is a message and its answer, each on its own. A stream keeps its order, as TCP does, until it
breaks; then what is under way is lost or, on the old stream, still arrives after a new one was
opened.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Generic, TypeVar

from scheduler.testing.simulation.faults import Faults
from scheduler.testing.simulation.loop import Gone, Process

T = TypeVar("T")

#: Seconds a message takes; one that is delayed takes up to SLOW_S.
FASTEST_S, SLOWEST_S, SLOW_S = 0.001, 0.02, 6.0
#: Seconds after which a caller no longer waits for an answer.
PATIENCE_S = 4.0


class Pipe(Generic[T]):
    """One direction of a stream: in order, and then the end."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._arrived: asyncio.Queue[T | None] = asyncio.Queue()
        self._last_at = 0.0
        self._late_s = 0.0
        self._is_broken = False

    def slow_down(self, late_s: float) -> None:
        """From now on everything takes so much longer."""
        self._late_s = late_s

    def put(self, message: T) -> None:
        """Send; into the void once it is broken."""
        if not self._is_broken:
            self._deliver(message)

    def end(self, *, is_lossy: bool = False, noticed_after_s: float = 0.0) -> None:
        """End it after what is under way, or instead of it; its reader may notice later."""
        if self._is_broken:
            return
        self._is_broken = True
        if is_lossy:
            self._arrived.put_nowait(None)
            return
        self._last_at = max(self._last_at, asyncio.get_running_loop().time() + noticed_after_s)
        self._deliver(None)

    async def __aiter__(self) -> AsyncIterator[T]:
        arrived = self._arrived
        while (message := await arrived.get()) is not None:
            yield message

    def _deliver(self, message: T | None) -> None:
        loop, network = asyncio.get_running_loop(), self._network
        soonest = loop.time() + network.delay() + self._late_s
        earliest = max(soonest, network.stands_still_until)
        # Timers of one moment come in any order.
        self._last_at = max(self._last_at + 1e-6, earliest)
        loop.call_at(self._last_at, self._arrived.put_nowait, message)


class Stream:
    """Two pipes between a runner and a control plane."""

    def __init__(self, network: Network, process: Process) -> None:
        """``process`` is the control plane's."""
        self.process = process
        self.up: Pipe[Any] = Pipe(network)
        self.down: Pipe[Any] = Pipe(network)

    def close(self) -> None:
        """End both directions in order."""
        self.up.end()
        self.down.end()

    async def half_open(self, rng: random.Random) -> None:
        """What the runner sends is late, and after a while it thinks the stream broken and opens
        another; the control plane hears it out on the old one."""
        self.up.slow_down(rng.uniform(0.5, 10.0))
        await asyncio.sleep(rng.uniform(0.1, 2.0))
        self.down.end(is_lossy=True)

    def tear(self, rng: random.Random) -> None:
        """Break it: each direction for itself, with or without what is under way. The control plane
        may hold a dead stream for open for a while."""
        self.up.end(is_lossy=rng.random() < 0.5, noticed_after_s=rng.choice([0.0, 0.0, 3.0]))
        self.down.end(is_lossy=rng.random() < 0.5)


class Network:
    """Carries everything between processes."""

    def __init__(self, faults: Faults, rng: random.Random) -> None:
        self._faults, self._rng = faults, rng
        #: Streams between runners and control planes that are open.
        self.streams: dict[Stream, None] = {}
        #: Virtual time until which streams carry nothing.
        self.stands_still_until = 0.0

    def open(self, process: Process) -> Stream:
        stream = Stream(self, process)
        self.streams[stream] = None
        return stream

    def breaks_watcher(self) -> bool:
        """Whether a watcher's stream breaks after what it has just read."""
        return self._faults.strike("watcher's stream broke")

    def delay(self) -> float:
        return self._rng.uniform(FASTEST_S, SLOWEST_S)

    async def call(self, process: Process, answer: Callable[[], Awaitable[T]]) -> T:
        """Have another process answer.

        Raises:
            Gone: no answer came in time; whether it was asked is unknown.
        """
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[T] = loop.create_future()
        if not self._faults.strike("request lost"):
            self._send(process, answer, answered)
            if self._faults.strike("request repeated"):
                self._send(process, answer, answered)
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await answered
        except TimeoutError:
            raise Gone(process.name) from None

    def _send(
        self, process: Process, answer: Callable[[], Awaitable[T]], answered: asyncio.Future[T]
    ) -> None:
        def arrive() -> None:
            if process.is_alive:
                process.start(self._answer(answer, answered))

        asyncio.get_running_loop().call_later(self._call_delay(), arrive)

    async def _answer(
        self, answer: Callable[[], Awaitable[T]], answered: asyncio.Future[T]
    ) -> None:
        value, error = None, None
        try:
            value = await answer()
        except Exception as raised:  # noqa: BLE001  # it is the caller's, and raised there
            error = raised
        if self._faults.strike("answer lost"):
            return
        await asyncio.sleep(self._call_delay())
        if answered.done():
            return
        if error is not None:
            answered.set_exception(error)
        else:
            answered.set_result(value)  # type: ignore[arg-type]  # a T, or there is an error

    def _call_delay(self) -> float:
        is_slow = self._faults.strike("request delayed")
        return self._rng.uniform(0.0, SLOW_S) if is_slow else self.delay()
