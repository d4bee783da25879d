"""What a contender is: something that accepts tasks and works them off, in processes of its own.

A file of this folder is one contender; the file's name is what it is called by. It has ``FACTS``,
a class ``Contender`` and a function ``serve(folder)``: a context manager that keeps what all
processes of the contender share, such as a Redis, and yields its address. ``host.py`` makes the
contender in a process that submits and in one that works. All of them work one task: it writes
down that it has begun, sleeps if it was told to, and writes down that it is done.
"""

from __future__ import annotations

import asyncio
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from benchmarks.queue.ledger import Ledger

T = TypeVar("T")

#: Parts of the benchmark that a contender may take part in.
RATES, LATENCY, KILL = "rates", "latency", "kill"
#: Coroutines that submit at the same time, where submitting is a coroutine.
NUM_CALLERS = 100


@dataclass(frozen=True, slots=True)
class Facts:
    """What is told of a contender beside what is measured."""

    label: str
    #: What of an accepted task survives, and what not.
    promise: str
    #: Whether an accepted task survives a power cut.
    is_durable: bool
    #: How many tasks are submitted other than one after the other.
    together: str
    #: What works, with the slots it is given.
    worker: str
    #: What brings back a task whose worker has died.
    recovery: str
    #: Distributions whose versions are told.
    packages: tuple[str, ...] = ()
    parts: frozenset[str] = frozenset({RATES, LATENCY, KILL})
    #: It works in the process that submits.
    is_embedded: bool = False
    #: Slots that rates are measured with in addition to those that all have.
    more_slots: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Setup:
    """What a contender is made with."""

    #: What ``serve`` yielded.
    address: str
    #: For files of its own; the same in all its processes.
    folder: str
    #: Tasks it may work on at once.
    slots: int
    ledger: str


@dataclass(frozen=True, slots=True)
class Job:
    """One task."""

    #: Its row in the ledger.
    index: int
    #: How long it takes.
    seconds: float = 0.0


class Contender(Protocol):
    """Is made with a setup, in each of its processes."""

    def submit(self, jobs: Sequence[Job], pace_s: float = 0.0) -> None:
        """Have them accepted one after the other, each ``pace_s`` after the one before."""
        ...

    def submit_together(self, jobs: Sequence[Job]) -> None:
        """Have them accepted in the way that ``Facts.together`` tells."""
        ...

    def work(self) -> None:
        """Work tasks off until the process is told to stop."""
        ...

    def close(self) -> None:
        """End what it has opened."""
        ...


class Serve(Protocol):
    """The type of ``serve``."""

    def __call__(self, folder: Path) -> AbstractContextManager[str]: ...


@contextmanager
def nothing(folder: Path) -> Iterator[str]:  # noqa: ARG001  # the type of ``serve``
    """``serve`` of a contender whose processes share files alone."""
    yield ""


class Pace:
    """Moments at equal distances; one that is late does not move the others."""

    def __init__(self, pace_s: float) -> None:
        self._pace_s = pace_s
        self._next_at = time.monotonic()

    def pause_s(self) -> float:
        """Seconds until the next moment."""
        pause_s = max(0.0, self._next_at - time.monotonic())
        self._next_at += self._pace_s
        return pause_s


class Blocking(ABC):
    """A contender whose calls block."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.ledger = Ledger(Path(setup.ledger))

    @abstractmethod
    def submit_one(self, job: Job) -> None: ...

    def submit(self, jobs: Sequence[Job], pace_s: float = 0.0) -> None:
        pace = Pace(pace_s)
        for job in jobs:
            if pace_s:
                time.sleep(pace.pause_s())
            self.ledger.submitted(job.index)
            self.submit_one(job)

    def task(self) -> Callable[[int, float], None]:
        """The task, as a plain function: what libraries register must not be a method."""

        def run(index: int, seconds: float) -> None:
            self.ledger.begun(index)
            if seconds:
                time.sleep(seconds)
            self.ledger.done(index)

        return run

    def close(self) -> None:  # noqa: B027  # most have nothing to end
        pass


def waiting_task(ledger: Ledger) -> Callable[[int, float], Awaitable[None]]:
    """The task as a coroutine."""

    async def run(index: int, seconds: float) -> None:
        ledger.begun(index)
        if seconds:
            await asyncio.sleep(seconds)
        ledger.done(index)

    return run


class Awaiting(ABC):
    """A contender whose calls are awaited. Its event loop runs in a thread."""

    #: Coroutines that submit at the same time.
    num_callers = NUM_CALLERS

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.ledger = Ledger(Path(setup.ledger))
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="loop", daemon=True).start()

    @abstractmethod
    async def submit_one(self, job: Job) -> None: ...

    def wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        """Run it in the loop; from any other thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def submit(self, jobs: Sequence[Job], pace_s: float = 0.0) -> None:
        self.wait_for(self._submit(iter(jobs), pace_s))

    def submit_together(self, jobs: Sequence[Job]) -> None:
        self.wait_for(self._submit_together(jobs))

    def task(self) -> Callable[[int, float], Awaitable[None]]:
        """The task, as a plain function: what libraries register must not be a method."""
        return waiting_task(self.ledger)

    def close(self) -> None:  # noqa: B027  # most have nothing to end
        pass

    async def _submit(self, jobs: Iterator[Job], pace_s: float) -> None:
        pace = Pace(pace_s)
        for job in jobs:
            if pace_s:
                await asyncio.sleep(pace.pause_s())
            self.ledger.submitted(job.index)
            await self.submit_one(job)

    async def _submit_together(self, jobs: Sequence[Job]) -> None:
        shared = iter(jobs)
        await asyncio.gather(*(self._submit(shared, 0.0) for _ in range(self.num_callers)))
