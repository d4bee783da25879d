"""Hands tasks whose first token is overdue to other replicas, as the decider beside it says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from scheduler.clock import Clock
from scheduler.container import Reliance
from scheduler.dispatcher.hedging import Hedges, Waiting
from scheduler.dispatcher.sessions import LeaseKey, Sessions, Slot
from scheduler.errors import StoreUnavailable, TaskNotFound
from scheduler.task import Grant, Task
from scheduler.task_book import TaskBook

log = structlog.get_logger(__name__)

#: Seconds between two looks, while any grant is awaited that might be handed over.
_LOOK_S: Final = 0.1


class Hedger:
    """The hand-overs of one dispatcher."""

    def __init__(
        self,
        book: TaskBook,
        sessions: Sessions,
        reliance: Reliance,
        clock: Clock,
        deliver: Callable[[Slot, Grant], Awaitable[None]],
    ) -> None:
        """``deliver`` tells a runner of a grant."""
        self._book, self._sessions, self._reliance = book, sessions, reliance
        self._clock, self._deliver = clock, deliver
        self._hedges = Hedges()
        self._may_hedge = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Hedger {self._hedges!r}>"

    async def run(self) -> None:
        """Look and hand over until cancelled."""
        while True:
            await self._may_hedge.wait()
            await asyncio.sleep(_LOOK_S)
            if not self._hedges.is_watching:
                self._may_hedge.clear()
            for waiting in self._hedges.overdue(self._clock.monotonic()):
                try:
                    await self._hand_over(waiting)
                except (StoreUnavailable, TaskNotFound) as error:
                    log.warning("task_not_hedged", reason=str(error))

    def granted(self, slot: Slot, task: Task) -> None:
        """A runner was told of a grant."""
        is_flaky = self._reliance.is_flaky(slot.provider, slot.container)
        self._hedges.granted(slot, task, self._clock.monotonic(), is_flaky=is_flaky)
        if self._hedges.is_watching:
            self._may_hedge.set()

    def begun(self, lease: LeaseKey) -> None:
        """A chunk of a lease came."""
        self._hedges.begun(lease, self._clock.monotonic())

    def ended(self, lease: LeaseKey) -> None:
        """A lease is over."""
        self._hedges.ended(lease)

    async def _hand_over(self, waiting: Waiting) -> None:
        flaky = {
            node.runner_id
            for node in self._sessions.nodes()
            if self._reliance.is_flaky(node.provider, node.container)
        }
        slot = self._sessions.next_slot(waiting.model, frozenset(flaky | {waiting.runner_id}))
        if slot is None:
            return
        granted = await self._book.hand_over(
            waiting.lease.task_id,
            waiting.lease.fence,
            runner=slot.runner_id,
            replica=slot.replica,
            device_kind=slot.device_kind,
        )
        self._hedges.ended(waiting.lease)
        if granted is not None:
            self._hedges.handed_over()
            log.info("task_hedged", task_id=granted.task.id, late=waiting.runner_id)
            await self._deliver(slot, granted)
