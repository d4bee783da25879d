"""The book of tasks: every move a task can make, each as one atomic, durable command.

The rules are in ``scheduler/moves.py``; the book runs them on a store with the time
and ids they need, and when they are on disk tells listeners and watchers, in the order of commits.
They are told also when the caller was cancelled meanwhile: what is on disk has happened.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from scheduler import moves
from scheduler.clock import Clock
from scheduler.errors import InvalidRequest, PlaitError, StoreUnavailable
from scheduler.fair_queue import FairQueue
from scheduler.ids import IdSource
from scheduler.moves import Change, Outcome, Rules
from scheduler.policies import virtual_time
from scheduler.result.stream import News, Watcher, Watchers
from scheduler.stores.base import Store, Transaction
from scheduler.task import (
    Attempt,
    Grant,
    JournalChunk,
    Submission,
    Task,
    TaskError,
    TaskEvent,
    TaskState,
)

T = TypeVar("T")

#: Tasks that one command of a sweep moves, so that others get their turn in between.
SWEEP_BATCH = 500
#: Chunks a watcher reads from the journal at once.
WATCH_PAGE = 1000
#: A weight may be a thousandth to a thousandfold of the ordinary one.
MAX_WEIGHT_PERMILLE = 1_000_000
#: Seconds until a watcher tries again to read from a store that refused.
STORE_PAUSE_S = 0.2


class TaskBook:
    """Every coroutine returns after its effect is on disk, or raises and has had none.

    All may raise StoreUnavailable, after which the effect is unknown and the call may be repeated.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        lease_ttl_s: float,
        max_attempts: int = 5,
        queue: FairQueue | None = None,
        new_id: Callable[[], str] | None = None,
    ) -> None:
        queue = queue or FairQueue(virtual_time.Policy())
        self._store = store
        self._clock = clock
        self._rules = Rules(queue, lease_ttl_s, max_attempts)
        self._new_id = new_id or IdSource(clock)
        self._watchers = Watchers()
        self._queued_listeners: list[Callable[[str], None]] = []
        self._lease_ended_listeners: list[Callable[[Task], None]] = []
        self._desired_listeners: list[Callable[[], None]] = []

    # -- for the gateway

    async def submit(self, submission: Submission) -> tuple[Task, bool]:
        """Accept; (task, False) when the idempotency key already has this very request.
        Raises IdempotencyConflict."""
        # As it will be read back: JSON knows no tuples.
        document = json.loads(json.dumps(submission.document))
        submission = replace(submission, document=document)
        task_id, now = self._new_id(), self._clock.now()
        return await self._run(lambda tx: moves.submit(tx, self._rules, submission, task_id, now))

    async def task(self, task_id: str, tenant: str | None = None) -> Task:
        """Raises TaskNotFound, also when ``tenant`` is given and is not the owner."""
        return await self._store.read(lambda tx: moves.owned(tx, task_id, tenant))

    async def tasks(
        self,
        *,
        tenant: str | None = None,
        model: str | None = None,
        state: TaskState | None = None,
        limit: int = 100,
        before: str | None = None,
    ) -> list[Task]:
        """Newest first; ``before`` is the last id of the page before."""
        return await self._store.read(
            lambda tx: tx.tasks(tenant=tenant, model=model, state=state, limit=limit, before=before)
        )

    async def attempts(self, task_id: str) -> list[Attempt]:
        """In order. Raises TaskNotFound."""

        def query(tx: Transaction) -> list[Attempt]:
            moves.owned(tx, task_id)
            return tx.attempts(task_id)

        return await self._store.read(query)

    async def chunks(self, task_id: str, cursor: int = 0, limit: int = 1000) -> list[JournalChunk]:
        """Journal entries with seq >= cursor, in order. Raises TaskNotFound."""

        def query(tx: Transaction) -> list[JournalChunk]:
            moves.owned(tx, task_id)
            return tx.chunks(task_id, cursor, limit)

        return await self._store.read(query)

    async def depth(self) -> dict[str, int]:
        """Queued tasks by model."""
        return await self._store.read(lambda tx: tx.depth())

    async def cancel(self, task_id: str, tenant: str | None = None, reason: str = "") -> Task:
        """Idempotent: a final task is returned as it is. The holder of a lease learns it through
        the ``on_lease_ended`` listener, and its later writes raise StaleLease."""
        now = self._clock.now()
        return await self._run(
            lambda tx: moves.cancel(tx, self._rules, task_id, tenant, reason, now)
        )

    # -- for the dispatcher: writes with a fence raise StaleLease when it is not the current one

    async def claim(self, model: str, *, runner: str, replica: str, limit: int = 1) -> list[Grant]:
        """Up to ``limit`` queued tasks of the model, in fair order, leased to the replica."""
        now = self._clock.now()
        return await self._run(
            lambda tx: moves.claim(tx, self._rules, model, runner, replica, limit, now)
        )

    async def append(self, task_id: str, fence: int, chunks: Sequence[JournalChunk]) -> int:
        """Add to the journal; chunks already there are skipped (a repeat after a reconnect), a gap
        raises ValueError. Returns the next expected seq."""
        now = self._clock.now()
        return await self._run(
            lambda tx: moves.append(tx, self._rules, task_id, fence, chunks, now)
        )

    async def succeed(self, task_id: str, fence: int, result: Mapping[str, Any]) -> Task:
        """Idempotent for the same fence."""
        now, stored = self._clock.now(), json.loads(json.dumps(result))
        return await self._run(
            lambda tx: moves.succeed(tx, self._rules, task_id, fence, stored, now)
        )

    async def fail(self, task_id: str, fence: int, error: TaskError) -> Task:
        """The request is at fault, or the handler gave up on it: final. Idempotent for the same
        fence."""
        now = self._clock.now()
        return await self._run(lambda tx: moves.fail(tx, self._rules, task_id, fence, error, now))

    async def release(self, task_id: str, fence: int, reason: str) -> Task:
        """The attempt was lost through no fault of the task: queued again at the head of its flow,
        journal kept; FAILED with status 500 when attempts are used up. Idempotent for the same
        fence until the task is claimed again."""
        now = self._clock.now()
        return await self._run(
            lambda tx: moves.release(tx, self._rules, task_id, fence, reason, now)
        )

    async def renew(self, runner: str, held: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
        """Extend the leases; returns those of ``held`` that are no longer the runner's."""
        now, leases = self._clock.now(), list(held)
        return await self._run(lambda tx: moves.renew(tx, self._rules, runner, leases, now))

    async def release_others(
        self, runner: str, held: Iterable[tuple[str, int]], reason: str
    ) -> list[Task]:
        """Release every lease of ``runner`` that is not in ``held`` (it restarted and forgot)."""
        now, leases = self._clock.now(), list(held)
        return await self._run(
            lambda tx: moves.release_others(tx, self._rules, runner, leases, reason, now)
        )

    async def sweep(self) -> list[Task]:
        """Release leases that ran out, expire queued and leased tasks whose deadline has passed."""
        now = self._clock.now()
        swept: list[Task] = []
        while True:
            some = await self._run(lambda tx: moves.sweep(tx, self._rules, now, SWEEP_BATCH))
            swept += some
            if len(some) < SWEEP_BATCH:
                return swept

    async def extend_all(self) -> int:
        """Give every live lease a full term: the control plane was away, the runners were not."""
        now = self._clock.now()
        return await self._run(lambda tx: moves.extend_all(tx, self._rules, now))

    # -- listeners, called in the event loop after the commit

    def on_queued(self, listener: Callable[[str], None]) -> None:
        """``listener(model)``: a task of the model became claimable."""
        self._queued_listeners.append(listener)

    def on_lease_ended(self, listener: Callable[[Task], None]) -> None:
        """``listener(task)``: a live lease ended other than by its holder's word (cancel, expiry);
        ``task`` still names runner, replica and fence of that lease."""
        self._lease_ended_listeners.append(listener)

    def on_desired_replicas(self, listener: Callable[[], None]) -> None:
        """``listener()``: an operator has set how many replicas a model should have."""
        self._desired_listeners.append(listener)

    async def watch(self, task_id: str, cursor: int = 0) -> AsyncIterator[TaskEvent]:
        """First the task as it stands, as "state"; then from ``cursor`` on chunks after they are
        durable and further states as they come; then "end". A slow reader loses nothing: it reads
        from the journal, and may not see states that passed meanwhile.

        Raises:
            TaskNotFound: there is no such task.
            InvalidRequest: the journal does not reach up to ``cursor``.
        """
        watcher = self._watchers.attach(task_id)
        last = -1
        try:
            while True:
                if watcher.is_behind:
                    news = await self._catch_up(watcher, cursor, is_first=last < 0)
                else:
                    news = await watcher.next()
                if news is None:
                    continue
                task = news[0]
                chunks = [chunk for chunk in news[1] if chunk.seq >= cursor]
                is_news = last < 0 or (_step(task) > last and not task.state.is_final)
                last = max(last, _step(task))
                if is_news:
                    yield TaskEvent("state", cursor, task=task)
                for chunk in chunks:
                    cursor = chunk.seq + 1
                    yield TaskEvent("chunk", cursor, chunk=chunk)
                if task.state.is_final and cursor >= task.num_chunks:
                    yield TaskEvent("end", cursor, task=task)
                    return
        finally:
            self._watchers.detach(watcher)

    async def _catch_up(self, watcher: Watcher, cursor: int, *, is_first: bool) -> News | None:
        """What the journal has from ``cursor`` on; None when it cannot be read just now."""
        watcher.catch_up()
        page = partial(_page, task_id=watcher.task_id, cursor=cursor)
        try:
            task, chunks = await self._store.read(page)
        except StoreUnavailable:
            if is_first:
                raise
            watcher.fall_behind()
            await asyncio.sleep(STORE_PAUSE_S)
            return None
        if cursor + len(chunks) < task.num_chunks:
            watcher.fall_behind()
        return task, chunks

    # -- operator's data

    async def weights(self) -> dict[str, int]:
        """Weight by tenant, in thousandths; tenants without an entry have 1000."""
        return await self._store.read(lambda tx: tx.weights())

    async def set_weight(self, tenant: str, weight_permille: int) -> None:
        """Holds from the next claim on. Raises InvalidRequest."""
        if not 1 <= weight_permille <= MAX_WEIGHT_PERMILLE:
            raise InvalidRequest(
                f"weight_permille is {weight_permille}; allowed are 1 to {MAX_WEIGHT_PERMILLE}",
                field="weight_permille",
            )
        await self._store.run(lambda tx: tx.put_weight(tenant, weight_permille))

    async def service(self, model: str) -> dict[str, int]:
        """Cost charged so far by tenant, in weighted tokens."""
        flows = await self._store.read(lambda tx: tx.flows(model))
        return {flow.tenant: flow.charged_cost for flow in flows}

    async def desired_replicas(self) -> dict[str, int]:
        """By model; only those that an operator has set, the others follow their config."""
        return await self._store.read(lambda tx: tx.desired_replicas())

    async def set_desired_replicas(self, model: str, num_replicas: int) -> None:
        """Raises InvalidRequest."""
        if num_replicas < 0:
            raise InvalidRequest(
                f"num_replicas is {num_replicas}; allowed is 0 or more", field="num_replicas"
            )
        await self._store.run(lambda tx: tx.put_desired_replicas(model, num_replicas))
        for listener in self._desired_listeners:
            listener()

    # -- commit, then tell

    async def _run(self, command: Callable[[Transaction], Outcome[T]]) -> T:
        # Shielded: a caller that goes away must not keep watchers from hearing what was committed.
        commit = asyncio.ensure_future(self._commit(command))
        try:
            return await asyncio.shield(commit)
        except asyncio.CancelledError:
            commit.add_done_callback(_take_note)
            raise

    async def _commit(self, command: Callable[[Transaction], Outcome[T]]) -> T:
        try:
            outcome = await self._store.run(command)
        except StoreUnavailable:
            # It may be on disk all the same, and then a repeat changes nothing: nobody would tell
            # watchers what the first one did. So they look for themselves.
            self._watchers.doubt()
            raise
        for change in outcome.changes:
            self._tell(change)
        return outcome.value

    def _tell(self, change: Change) -> None:
        self._watchers.tell(change.task, change.chunks)
        loop = asyncio.get_running_loop()
        # Through the loop, so that a listener's error is the loop's to report, not the caller's.
        if change.task.state is TaskState.QUEUED:
            for queued in self._queued_listeners:
                loop.call_soon(queued, change.task.model)
        if change.ended_lease is not None:
            for lease_ended in self._lease_ended_listeners:
                loop.call_soon(lease_ended, change.ended_lease)


def _take_note(commit: asyncio.Future[Any]) -> None:
    """A refusal whose caller has gone concerns nobody; a bug is still the loop's to report."""
    error = None if commit.cancelled() else commit.exception()
    if error is not None and not isinstance(error, PlaitError):
        context = {"message": "a command failed whose caller has gone", "exception": error}
        commit.get_loop().call_exception_handler(context)


def _page(tx: Transaction, task_id: str, cursor: int) -> tuple[Task, tuple[JournalChunk, ...]]:
    task = moves.owned(tx, task_id)
    if not 0 <= cursor <= task.num_chunks:
        raise InvalidRequest(
            f"cursor is {cursor}; task {task_id} has chunks 0 to {task.num_chunks}", field="cursor"
        )
    return task, tuple(tx.chunks(task_id, cursor, WATCH_PAGE))


def _step(task: Task) -> int:
    """Grows with each move of a task, so that news which came late can be told from new ones."""
    steps = {TaskState.LEASED: 0, TaskState.QUEUED: 1}
    return task.fence * 3 + steps.get(task.state, 2)
