"""Claims tasks for the replicas that have room for them, and tells their runners.

Which task goes next the task book decides, which replica takes it
:mod:`scheduler.dispatcher.sessions`, and how many slots stay free
:mod:`scheduler.dispatcher.headroom`. It looks at a model whenever it is awakened for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

import structlog

from scheduler.clock import Clock
from scheduler.container import Reliance
from scheduler.dispatcher import messages
from scheduler.dispatcher.headroom import Headroom
from scheduler.dispatcher.hedger import Hedger
from scheduler.dispatcher.link import Link
from scheduler.dispatcher.sessions import LeaseKey, Room, Sessions, Slot
from scheduler.errors import StaleLease, StoreUnavailable
from scheduler.moves import Change
from scheduler.task import Grant
from scheduler.task_book import TaskBook

log = structlog.get_logger(__name__)

_STORE_PAUSE_S: Final = 0.2


class Granting:
    """What goes down the runners' streams as grants."""

    def __init__(
        self,
        book: TaskBook,
        clock: Clock,
        sessions: Sessions,
        links: Mapping[str, Link],
        *,
        reliance: Reliance,
        journal_interval_s: float,
    ) -> None:
        """``links`` are the open streams by runner, as they come and go; ``journal_interval_s``:
        most seconds for which output is gathered, in a container that is trusted by ``reliance``.
        """
        self._book, self._clock = book, clock
        self._reliance, self._journal_interval_s = reliance, journal_interval_s
        self._sessions, self._links = sessions, links
        self._headroom = Headroom()
        #: Hands over what one runner is late with.
        self.hedger = Hedger(book, sessions, reliance, clock, self._deliver)
        self._woken: set[str] = set()
        self._wake = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Granting woken={len(self._woken)} {self._headroom!r}>"

    def awaken(self, model: str) -> None:
        """There may be a task for the model now, or room for one."""
        self._woken.add(model)
        self._wake.set()

    def awaken_all(self) -> None:
        """The same for every model that somebody runs."""
        for model in self._sessions.models():
            self.awaken(model)

    def saw(self, changes: tuple[Change, ...]) -> None:
        """What was written of tasks: those that are about to end make room before they have."""
        now = self._clock.monotonic()
        for task in [change.task for change in changes if change.chunks]:
            if task.runner is None or not task.cost_per_token:
                continue
            most = (task.estimated_cost - task.prompt_cost) // task.cost_per_token
            lease = LeaseKey(task.id, task.fence)
            is_ending = self._sessions.progressed(task.runner, lease, most - task.num_tokens, now)
            if is_ending and self._headroom.is_keeping(task.model):
                self.awaken(task.model)

    async def run(self) -> None:
        """Grant until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            models, self._woken = self._woken, set()
            for model in sorted(models):
                try:
                    await self._grant_all(model)
                except StoreUnavailable as error:
                    log.warning("store_refused", model=model, error=str(error))
                    asyncio.get_running_loop().call_later(_STORE_PAUSE_S, self.awaken, model)

    async def _grant_all(self, model: str) -> None:
        """Claim for the least loaded replica until there is no task or no room."""
        while (slot := self._sessions.next_slot(model)) is not None:
            now = self._clock.monotonic()
            offer = self._headroom.offer(model, slot.limit, self._sessions.room(model, now), now)
            grants = await self._book.claim(
                model,
                runner=slot.runner_id,
                replica=slot.replica,
                limit=offer.limit,
                device_kind=slot.device_kind,
                most_leased=offer.most_leased,
            )
            for granted in grants:
                self._headroom.served(model, granted.task.tenant, now)
                await self._deliver(slot, granted)
            if len(grants) < offer.limit:
                is_kept = offer.most_leased is not None and await self._book.has_claimable(model)
                self._count_kept(model, is_kept=is_kept)
                return
        self._count_kept(model, is_kept=False)
        if self._room(model).capacity:
            # Nobody has room: perhaps somebody should make some.
            for parked in await self._book.preempt(model):
                log.info("task_parked", task_id=parked.id, model=model, fence=parked.fence)

    def _count_kept(self, model: str, *, is_kept: bool) -> None:
        """Note whether somebody waits beside what is free."""
        room = self._room(model)
        if room.capacity:
            num_slots = room.free if is_kept else 0
            self._headroom.kept(model, num_slots, room.capacity, self._clock.monotonic())

    def _room(self, model: str) -> Room:
        return self._sessions.room(model, self._clock.monotonic())

    async def _deliver(self, slot: Slot, granted: Grant) -> None:
        task = granted.task
        link = self._links.get(slot.runner_id)
        is_leased = self._sessions.leased(slot, LeaseKey(task.id, task.fence))
        if link is None or not is_leased:
            reason = "its runner or its replica left before it was told"
            try:
                await self._book.release(task.id, task.fence, reason)
            except (StaleLease, StoreUnavailable) as error:
                log.warning("grant_not_released", task_id=task.id, error=str(error))
            return
        self.hedger.granted(slot, task)
        trust = self._reliance.trust(slot.provider, slot.container)
        link.send(messages.grant(granted, slot.replica, trust * self._journal_interval_s))
        log.info(
            "task_granted",
            task_id=task.id,
            fence=task.fence,
            attempt=task.attempt,
            runner=slot.runner_id,
            replica=slot.replica,
            num_generated=sum(map(len, granted.generated)),
        )
