"""Virtual time: an event loop that never waits, and processes that die between two of its steps.

When nothing is ready the loop turns its clock to the next timer, so minutes pass in milliseconds;
what happens at one moment happens in the order it was asked for. It has no sockets and no threads.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any

from scheduler.errors import PlaitError


class Stuck(Exception):
    """Everything waits, and nothing would end it."""


class _Timers:
    """In place of a selector: instead of waiting, the clock is turned."""

    def __init__(self) -> None:
        self.now = 0.0

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise Stuck("everything waits, and no timer is set")
        self.now += timeout
        return []


class Loop(asyncio.BaseEventLoop):
    """An event loop in virtual time, which begins at 0."""

    def __init__(self) -> None:
        super().__init__()
        # What the base class asks for readiness, and would wake from another thread.
        self._selector = _Timers()
        self.set_task_factory(_owned_task)

    def time(self) -> float:
        return self._selector.now

    def _process_events(self, event_list: list[Any]) -> None:
        assert not event_list

    def _write_to_self(self) -> None:
        """There is no other thread to be woken from."""


class Clock:
    """The clock of one machine, which may be set wrong."""

    #: What the first moment is called, in seconds since the epoch.
    EPOCH = 1_000_000.0

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.offset_s = 0.0

    def now(self) -> float:
        return self.EPOCH + self._loop.time() + self.offset_s

    def monotonic(self) -> float:
        return self._loop.time()


_OWNER: contextvars.ContextVar[Process] = contextvars.ContextVar("owner")


class Process:
    """What dies together: every asyncio task that its code has started, at once.

    A task that is cancelled still runs its ``finally``; whatever a process acts through (store,
    network) looks at ``is_alive`` first, so that nothing done after its death has an effect.
    """

    def __init__(self, name: str, report: Callable[[str], None]) -> None:
        """``report(problem)`` is called for an error nobody expected."""
        self.name = name
        self.is_alive = True
        self.context = contextvars.copy_context()
        self.context.run(_OWNER.set, self)
        self._report = report
        self._tasks: dict[asyncio.Task[Any], None] = {}

    def __repr__(self) -> str:
        return f"<Process {self.name} alive={self.is_alive} tasks={len(self._tasks)}>"

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine as part of this process."""
        return asyncio.get_running_loop().create_task(coroutine, context=self.context.copy())

    @property
    def is_busy(self) -> bool:
        return bool(self._tasks)

    def kill(self) -> None:
        self.is_alive = False
        for task in list(self._tasks):
            task.cancel()

    def adopt(self, task: asyncio.Task[Any]) -> None:
        self._tasks[task] = None
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        del self._tasks[task]
        if task.cancelled() or (error := task.exception()) is None:
            return
        # ValueError is what a gap in a journal is refused with.
        if self.is_alive and not isinstance(error, PlaitError | ValueError | Gone):
            self._report(f"{self.name}: {task.get_coro()} raised {error!r}")


class Gone(Exception):
    """The other end of a connection is not there any more."""


def _owned_task(
    loop: asyncio.AbstractEventLoop, coroutine: Any, context: contextvars.Context | None = None
) -> asyncio.Task[Any]:
    task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, context=context)
    owner = _OWNER.get(None) if context is None else context.get(_OWNER)
    if owner is not None:
        owner.adopt(task)
    return task
