"""Runs commands on the store and, when they are on disk, tells whoever waits to hear of it.

It is what ``task_book``, ``bulk_book`` and ``operations`` share. Listeners and watchers are told in
the order of commits, also when the caller was cancelled meanwhile: what is on disk has happened.
What other processes on the same store have done is passed on as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from scheduler.clock import Clock
from scheduler.errors import StoreUnavailable
from scheduler.moves import Change, Outcome
from scheduler.result.stream import Watchers
from scheduler.stores.base import News, Store, Transaction
from scheduler.task import TaskState

T = TypeVar("T")

#: Tasks that are named to other processes; of more they look for themselves.
MAX_NAMED = 64


class Ledger:
    """The store, and everybody who wants to know what is written."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self.store, self.clock = store, clock
        self.watchers = Watchers()
        self._queued: list[Callable[[str], None]] = []
        self._lease_ended: list[Callable[[str, int, str], None]] = []
        self._desired: list[Callable[[], None]] = []
        self._nodes: list[Callable[[], None]] = []
        self._changes: list[Callable[[tuple[Change, ...]], None]] = []
        store.listen(self._hear)

    def __repr__(self) -> str:
        return f"<Ledger {self.store!r} {self.watchers!r}>"

    # -- listeners, called in the event loop after the commit

    def on_queued(self, listener: Callable[[str], None]) -> None:
        """``listener(model)``: a task of the model became claimable."""
        self._queued.append(listener)

    def on_lease_ended(self, listener: Callable[[str, int, str], None]) -> None:
        """``listener(task_id, fence, runner)``: a live lease ended other than by its holder's word:
        it was cancelled, paused, parked, or ran out."""
        self._lease_ended.append(listener)

    def on_desired_replicas(self, listener: Callable[[], None]) -> None:
        """``listener()``: an operator has set how many replicas a model should have."""
        self._desired.append(listener)

    def on_nodes(self, listener: Callable[[], None]) -> None:
        """``listener()``: another process has written of nodes, or of what they are to run."""
        self._nodes.append(listener)

    def on_changes(self, listener: Callable[[tuple[Change, ...]], None]) -> None:
        """``listener(changes)``: this process has changed tasks. It is called for every command,
        before the command's caller goes on, and must be quick and raise nothing."""
        self._changes.append(listener)

    # -- commands

    async def run(self, command: Callable[[Transaction], Outcome[T]]) -> T:
        """Run a command; its effect is on disk when this returns.

        Raises:
            StoreUnavailable: whether it had an effect is unknown; it may be repeated.
        """

        def told(tx: Transaction) -> Outcome[T]:
            outcome = command(tx)
            if outcome.changes and self.store.is_shared:
                tx.tell(_news(outcome.changes))
            return outcome

        outcome: Outcome[T] = await self.store.run(told, self._committed)
        return outcome.value

    async def set_desired(self, command: Callable[[Transaction], None]) -> None:
        """Run a command that changes what should run."""

        def told(tx: Transaction) -> None:
            command(tx)
            tx.tell(News((), has_desired=True))

        await self.store.run(told)
        self._tell_all(self._desired)

    def _committed(self, outcome: Outcome[Any] | None, error: BaseException | None) -> None:
        """A command has ended, whether or not its caller still waits."""
        if isinstance(error, StoreUnavailable):
            # It may be on disk all the same, and then a repeat changes nothing: nobody would tell
            # watchers what the first one did. So they look for themselves.
            self.watchers.doubt()
        if outcome is None:
            return
        for change in outcome.changes:
            self.watchers.tell(change.task, change.chunks)
        if outcome.changes:
            for listener in self._changes:
                listener(outcome.changes)
        self._tell_models({c.task.model: None for c in outcome.changes if _is_queued(c)})
        for change in outcome.changes:
            if (lease := change.ended_lease) is not None and lease.runner is not None:
                self._tell_lease_ended(lease.id, lease.fence, lease.runner)

    # -- telling; through the loop, so that a listener's error is the loop's to report

    def _hear(self, news: News | None) -> None:
        """What another process has done; None: something may have been missed."""
        if news is None or news.task_ids is None:
            self.watchers.doubt()
        else:
            for task_id in news.task_ids:
                self.watchers.doubt(task_id)
        if news is None:
            # Whatever was queued meanwhile is found by the next look at all models.
            self._tell_all(self._desired)
            self._tell_all(self._nodes)
            return
        self._tell_models(news.models)
        for lease in news.ended_leases:
            self._tell_lease_ended(*lease)
        if news.has_desired:
            self._tell_all(self._desired)
        if news.has_nodes:
            self._tell_all(self._nodes)

    def _tell_models(self, models: Iterable[str]) -> None:
        loop = asyncio.get_running_loop()
        for model in models:
            for listener in self._queued:
                loop.call_soon(listener, model)

    def _tell_lease_ended(self, task_id: str, fence: int, runner: str) -> None:
        loop = asyncio.get_running_loop()
        for listener in self._lease_ended:
            loop.call_soon(listener, task_id, fence, runner)

    @staticmethod
    def _tell_all(listeners: Iterable[Callable[[], None]]) -> None:
        for listener in listeners:
            asyncio.get_running_loop().call_soon(listener)


def _is_queued(change: Change) -> bool:
    return change.task.state is TaskState.QUEUED


def _news(changes: tuple[Change, ...]) -> News:
    ids = tuple(dict.fromkeys(change.task.id for change in changes))
    leases = [change.ended_lease for change in changes if change.ended_lease is not None]
    return News(
        ids if len(ids) <= MAX_NAMED else None,
        tuple(dict.fromkeys(change.task.model for change in changes if _is_queued(change))),
        tuple((lease.id, lease.fence, lease.runner or "") for lease in leases),
    )
