"""A thread that owns a connection and works off calls from event loops, many at a time.

What waits when the thread is ready is taken as one batch; the batch function answers every entry,
and the answers go back to their event loop in one hand-over.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from scheduler.errors import PlaitError, StoreUnavailable
from scheduler.stores.base import Transaction

#: Is given a command's value or its error, in the event loop.
Then = Callable[[Any, BaseException | None], None]


@dataclass(slots=True, eq=False)
class Entry:
    """One call that waits for its answer: a value or an error."""

    function: Callable[[Transaction], Any]
    future: asyncio.Future[Any]
    then: Then | None = None
    value: Any = None
    error: BaseException | None = None

    def deliver(self) -> None:
        """Tell what came of it, and the caller if it still waits; runs in its event loop."""
        if self.then is not None:
            self.then(self.value, self.error)
        if self.future.done():
            self._report()
        elif self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.value)

    def _report(self) -> None:
        """A refusal whose caller has gone concerns nobody; a bug is the loop's to report."""
        if self.error is not None and not isinstance(self.error, PlaitError):
            message = "a command failed whose caller has gone"
            context = {"message": message, "exception": self.error}
            self.future.get_loop().call_exception_handler(context)


class Worker:
    """Runs ``work(batch)`` in its thread for batches of up to ``max_batch`` entries."""

    def __init__(self, name: str, work: Callable[[Sequence[Entry]], None], max_batch: int) -> None:
        self._work = work
        self._max_batch = max_batch
        self._waiting: queue.SimpleQueue[Entry | None] = queue.SimpleQueue()
        self._is_closed = False
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    async def call(self, function: Callable[[Transaction], Any], then: Then | None = None) -> Any:
        if self._is_closed:
            raise StoreUnavailable("the store is closed")
        entry = Entry(function, asyncio.get_running_loop().create_future(), then)
        self._waiting.put(entry)
        return await entry.future

    async def close(self) -> None:
        """Work off what waits, then end the thread; idempotent."""
        if not self._is_closed:
            self._is_closed = True
            self._waiting.put(None)
        await asyncio.to_thread(self._thread.join)

    def _loop(self) -> None:
        is_open = True
        while is_open:
            taken = self._take()
            batch = [entry for entry in taken if entry is not None]
            is_open = len(batch) == len(taken)
            if batch:
                self._answer(batch)
                _deliver(batch)

    def _answer(self, batch: Sequence[Entry]) -> None:
        try:
            self._work(batch)
        except BaseException as error:  # noqa: BLE001  # every caller is told; nobody may hang
            refuse(batch, error)

    def _take(self) -> list[Entry | None]:
        taken = [self._waiting.get()]
        with contextlib.suppress(queue.Empty):
            while len(taken) < self._max_batch:
                taken.append(self._waiting.get_nowait())
        return taken


def refuse(batch: Sequence[Entry], error: BaseException | None) -> None:
    """Answer with StoreUnavailable all that have no error of their own."""
    for entry in batch:
        if entry.error is None:
            entry.error = StoreUnavailable(f"the store refused: {error}")
            entry.error.__cause__ = error


def fit_to_raise(error: BaseException) -> BaseException:
    """An error as its caller gets it: some would end the event loop instead of reaching anybody."""
    if isinstance(error, StopIteration) or not isinstance(error, Exception):
        bug = RuntimeError(f"a command raised {error!r}")
        bug.__cause__ = error
        return bug
    return error


def _deliver(batch: Sequence[Entry]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[Entry]] = {}
    for entry in batch:
        by_loop.setdefault(entry.future.get_loop(), []).append(entry)
    for loop, entries in by_loop.items():
        # A loop that was closed has nobody left who waits.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_deliver_all, entries)


def _deliver_all(entries: Sequence[Entry]) -> None:
    for entry in entries:
        entry.deliver()
