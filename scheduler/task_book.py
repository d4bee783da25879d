"""The book of tasks: every move a task can make, each as one atomic, durable command.

The rules are in ``scheduler/moves``; the book runs them through the ledger with the time and ids
they need, and lets watchers follow a task.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from scheduler import moves
from scheduler.clock import Clock
from scheduler.errors import InvalidRequest, StoreUnavailable
from scheduler.fair_queue import FairQueue
from scheduler.ids import IdSource
from scheduler.ledger import Ledger
from scheduler.moves import Outcome, Rules
from scheduler.policies import virtual_time
from scheduler.records import changed
from scheduler.result.stream import News, Watcher
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

#: Tasks that one command of a sweep moves, so that others get their turn in between.
SWEEP_BATCH = 500
#: Tasks that one command of a purge removes: each may have thousands of chunks.
PURGE_BATCH = 50
#: Seconds between two commands of a purge, so that it takes no more than its share of the store.
PURGE_PAUSE_S = 0.02
#: Chunks a watcher reads from the journal at once.
WATCH_PAGE = 1000
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
        rules: Rules | None = None,
        new_id: Callable[[], str] | None = None,
    ) -> None:
        queue = queue or FairQueue(virtual_time.Policy())
        self.ledger = Ledger(store, clock)
        self.rules = rules or Rules(queue, lease_ttl_s, max_attempts)
        self.new_id = new_id or IdSource(clock)

    async def newest_id(self) -> str | None:
        """The greatest id of a task."""
        newest = await self.tasks(limit=1)
        return newest[0].id if newest else None

    # -- for the gateway

    async def submit(self, submission: Submission) -> tuple[Task, bool]:
        """Accept; (task, False) when the idempotency key already has this very request.
        Raises IdempotencyConflict."""
        # As it will be read back: JSON knows no tuples.
        document = json.loads(json.dumps(submission.document))
        submission = changed(submission, document=document)
        task_id, now = self.new_id(), self.ledger.clock.now()
        return await self.ledger.run(
            lambda tx: moves.submit(tx, self.rules, submission, task_id, now)
        )

    async def task(self, task_id: str, tenant: str | None = None) -> Task:
        """Raises TaskNotFound, also when ``tenant`` is given and is not the owner."""
        return await self.ledger.store.read(lambda tx: moves.owned(tx, task_id, tenant))

    async def tasks(
        self,
        *,
        tenant: str | None = None,
        model: str | None = None,
        state: TaskState | None = None,
        is_dead: bool = False,
        limit: int = 100,
        before: str | None = None,
    ) -> list[Task]:
        """Newest first; ``before`` is the last id of the page before."""

        def query(tx: Transaction) -> list[Task]:
            return tx.tasks(
                tenant=tenant,
                model=model,
                state=state,
                is_dead=is_dead,
                limit=limit,
                before=before,
            )

        return await self.ledger.store.read(query)

    async def attempts(self, task_id: str) -> list[Attempt]:
        """In order. Raises TaskNotFound."""

        def query(tx: Transaction) -> list[Attempt]:
            return moves.attempts(tx, moves.owned(tx, task_id))

        return await self.ledger.store.read(query)

    async def chunks(self, task_id: str, cursor: int = 0, limit: int = 1000) -> list[JournalChunk]:
        """Journal entries with seq >= cursor, in order. Raises TaskNotFound."""

        def query(tx: Transaction) -> list[JournalChunk]:
            moves.owned(tx, task_id)
            return tx.chunks(task_id, cursor, limit)

        return await self.ledger.store.read(query)

    async def depth(self) -> dict[str, int]:
        """Queued tasks by model."""
        return await self.ledger.store.read(lambda tx: tx.depth())

    async def has_claimable(self, model: str) -> bool:
        """Whether any task of the model waits whose tenant is not held."""

        def query(tx: Transaction) -> bool:
            return any(band.num_active > 0 for band in tx.bands(model))

        return await self.ledger.store.read(query)

    async def pause(self, task_id: str, tenant: str | None = None) -> Task:
        """Idempotent. Work under way stops; it goes on from its journal once it is resumed. Raises
        NotResumable, InvalidTransition."""
        now = self.ledger.clock.now()
        return await self.ledger.run(lambda tx: moves.pause(tx, self.rules, task_id, tenant, now))

    async def resume(self, task_id: str, tenant: str | None = None) -> Task:
        """Idempotent: a task that is not paused is returned as it is. Raises InvalidTransition."""
        now = self.ledger.clock.now()
        return await self.ledger.run(lambda tx: moves.resume(tx, self.rules, task_id, tenant, now))

    async def requeue(self, task_id: str, tenant: str | None = None) -> Task:
        """Try a dead letter again, from its journal. Raises InvalidTransition."""
        now = self.ledger.clock.now()
        return await self.ledger.run(lambda tx: moves.requeue(tx, self.rules, task_id, tenant, now))

    async def cancel(self, task_id: str, tenant: str | None = None, reason: str = "") -> Task:
        """Idempotent: a final task is returned as it is. The holder of a lease learns it through
        the ``on_lease_ended`` listener, and its later writes raise StaleLease."""
        now = self.ledger.clock.now()
        return await self.ledger.run(
            lambda tx: moves.cancel(tx, self.rules, task_id, tenant, reason, now)
        )

    # -- for the dispatcher: writes with a fence raise StaleLease when it is not the current one

    async def claim(
        self,
        model: str,
        *,
        runner: str,
        replica: str,
        limit: int = 1,
        device_kind: str = "",
        most_leased: int | None = None,
    ) -> list[Grant]:
        """Up to ``limit`` queued tasks of the model, in fair order, leased to the replica; with
        ``most_leased`` only of flows that have fewer in flight."""
        claim = partial(
            moves.claim,
            rules=self.rules,
            model=model,
            runner=runner,
            replica=replica,
            limit=limit,
            now=self.ledger.clock.now(),
            device_kind=device_kind,
            most_leased=most_leased,
        )
        return await self.ledger.run(claim)

    async def hand_over(
        self, task_id: str, fence: int, *, runner: str, replica: str, device_kind: str = ""
    ) -> Grant | None:
        """Lease a task of which nothing has come to another replica, in one step; None when that is
        not so any more, or it was handed over before."""
        now = self.ledger.clock.now()
        return await self.ledger.run(
            lambda tx: moves.hand_over(
                tx, self.rules, task_id, fence, runner, replica, now, device_kind
            )
        )

    async def preempt(self, model: str) -> list[Task]:
        """Park a running task of a lower class, if one of a higher class has waited too long for
        its turn; none, or that one."""
        now = self.ledger.clock.now()
        return await self.ledger.run(lambda tx: moves.preempt(tx, self.rules, model, now))

    async def clear(self, runner: str, replica: str, reason: str) -> list[Task]:
        """Park all work of a replica that can go on elsewhere; its holder learns it through the
        ``on_lease_ended`` listener."""
        now = self.ledger.clock.now()
        return await self.ledger.run(
            lambda tx: moves.clear(tx, self.rules, runner, replica, reason, now)
        )

    async def append(self, task_id: str, fence: int, chunks: Sequence[JournalChunk]) -> int:
        """Add to the journal; chunks already there are skipped (a repeat after a reconnect), a gap
        raises ValueError. Returns the next expected seq."""
        now = self.ledger.clock.now()
        return await self.ledger.run(
            lambda tx: moves.append(tx, self.rules, task_id, fence, chunks, now)
        )

    async def succeed(
        self,
        task_id: str,
        fence: int,
        result: Mapping[str, Any],
        chunks: Sequence[JournalChunk] = (),
    ) -> Task:
        """Idempotent for the same fence. ``chunks`` are appended with it, both or neither."""
        now, stored = self.ledger.clock.now(), json.loads(json.dumps(result))
        return await self.ledger.run(
            lambda tx: moves.succeed(tx, self.rules, task_id, fence, stored, now, chunks)
        )

    async def fail(self, task_id: str, fence: int, error: TaskError) -> Task:
        """The request is at fault, or the handler gave up on it: final. Idempotent for the same
        fence."""
        now = self.ledger.clock.now()
        return await self.ledger.run(
            lambda tx: moves.fail(tx, self.rules, task_id, fence, error, now)
        )

    async def release(self, task_id: str, fence: int, reason: str) -> Task:
        """The attempt was lost through no fault of the task: queued again at the head of its flow,
        journal kept; FAILED with status 500 when attempts are used up. Idempotent for the same
        fence until the task is claimed again."""
        now = self.ledger.clock.now()
        return await self.ledger.run(
            lambda tx: moves.release(tx, self.rules, task_id, fence, reason, now)
        )

    async def renew(self, runner: str, held: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
        """Extend the leases; returns those of ``held`` that are no longer the runner's."""
        now, leases = self.ledger.clock.now(), list(held)
        return await self.ledger.run(lambda tx: moves.renew(tx, self.rules, runner, leases, now))

    async def release_others(
        self, runner: str, held: Iterable[tuple[str, int]], reason: str
    ) -> list[Task]:
        """Release every lease of ``runner`` that is not in ``held`` (it restarted and forgot)."""
        now, leases = self.ledger.clock.now(), list(held)
        return await self.ledger.run(
            lambda tx: moves.release_others(tx, self.rules, runner, leases, reason, now)
        )

    async def expire_overdue(self) -> list[Task]:
        """End queued and leased tasks whose deadline has passed."""
        return await self._sweep(moves.expire_overdue)

    async def lose_expired(self) -> list[Task]:
        """Release leases that ran out."""
        return await self._sweep(moves.lose_expired)

    async def end_pauses(self) -> list[Task]:
        """Queue tasks whose pause after a lost attempt is over."""
        return await self._sweep(moves.end_pauses)

    async def _sweep(
        self, some: Callable[[Transaction, Rules, float, int], Outcome[list[Task]]]
    ) -> list[Task]:
        """Move all that a move finds, batch by batch."""
        now = self.ledger.clock.now()
        moved: list[Task] = []
        while True:
            batch = await self.ledger.run(lambda tx: some(tx, self.rules, now, SWEEP_BATCH))
            moved += batch
            if len(batch) < SWEEP_BATCH:
                return moved

    async def purge(self, finished_before: float) -> int:
        """Remove every task that ended before a moment, with its output; how many."""
        num_removed = 0
        while True:
            some = await self.ledger.store.run(
                lambda tx: moves.purge(tx, finished_before, PURGE_BATCH)
            )
            num_removed += some
            if some < PURGE_BATCH:
                return num_removed
            await asyncio.sleep(PURGE_PAUSE_S)

    async def renew_all(self) -> int:
        """Have every live lease end a full term from now: the control plane was away, or its clock
        was wrong, and the runners have gone on working. How many there are."""
        now = self.ledger.clock.now()
        return await self.ledger.run(lambda tx: moves.renew_all(tx, self.rules, now))

    async def watch(self, task_id: str, cursor: int = 0) -> AsyncIterator[TaskEvent]:
        """First the task as it stands, as "state"; then from ``cursor`` on chunks after they are
        durable and further states as they come; then "end". A slow reader loses nothing: it reads
        from the journal, and may not see states that passed meanwhile.

        Raises:
            TaskNotFound: there is no such task.
            InvalidRequest: the journal does not reach up to ``cursor``.
        """
        watcher = self.ledger.watchers.attach(task_id)
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
                is_news = last < 0 or (task.num_moves > last and not task.state.is_final)
                last = max(last, task.num_moves)
                if is_news:
                    yield TaskEvent("state", cursor, task=task)
                if chunks and chunks[0].seq > cursor:
                    # What came before was written by another control plane, whose word of it is
                    # still under way.
                    chunks = []
                for chunk in chunks:
                    cursor = chunk.seq + 1
                    yield TaskEvent("chunk", cursor, chunk=chunk)
                if task.state.is_final and cursor >= task.num_chunks:
                    yield TaskEvent("end", cursor, task=task)
                    return
                if cursor < task.num_chunks:
                    watcher.fall_behind()
        finally:
            self.ledger.watchers.detach(watcher)

    async def _catch_up(self, watcher: Watcher, cursor: int, *, is_first: bool) -> News | None:
        """What the journal has from ``cursor`` on; None when it cannot be read just now."""
        watcher.catch_up()
        page = partial(_page, task_id=watcher.task_id, cursor=cursor)
        try:
            task, chunks = await self.ledger.store.read(page)
        except StoreUnavailable:
            if is_first:
                raise
            watcher.fall_behind()
            await asyncio.sleep(STORE_PAUSE_S)
            return None
        if cursor + len(chunks) < task.num_chunks:
            watcher.fall_behind()
        return task, chunks


def _page(tx: Transaction, task_id: str, cursor: int) -> tuple[Task, tuple[JournalChunk, ...]]:
    task = moves.owned(tx, task_id)
    if not 0 <= cursor <= task.num_chunks:
        raise InvalidRequest(
            f"cursor is {cursor}; task {task_id} has chunks 0 to {task.num_chunks}", field="cursor"
        )
    return task, tuple(tx.chunks(task_id, cursor, WATCH_PAGE))
