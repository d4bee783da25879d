"""The book of bulks: many inputs begun, filled, followed and taken back as one.

A bulk's tasks are tasks like any other, in a class of its own weight, so all that holds for tasks
holds for them; the book adds what they are together. Whatever takes many of them is done in
batches, one batch of all bulks at a time, so that a commit never carries more than one and other
people's commands wait for no more than that.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from scheduler.bulk import Bulk
from scheduler.flow import BULK_CLASS
from scheduler.ledger import Ledger
from scheduler.moves import Rules, bulks
from scheduler.stores.base import Transaction
from scheduler.task import JournalChunk, Submission, Task, TaskState

#: Inputs that one command accepts, and tasks that one command cancels.
BATCH = 100
#: Seconds a bulk may stay open; then nobody will close it.
OPEN_FOR_S = 24 * 3600.0
#: Outcomes read at once: so many tasks, fewer when they hold more chunks than this together.
PAGE = 100
PAGE_CHUNKS = 10_000
#: Seconds between two looks of a reader that waits for outcomes or for further inputs.
LOOK_AGAIN_S = 0.1


@dataclass(frozen=True, slots=True)
class Progress:
    """A bulk with its tasks counted by state; states without any are left out."""

    bulk: Bulk
    counts: dict[TaskState, int]

    @property
    def num_ended(self) -> int:
        """Inputs whose task has ended; those whose task was removed are among them."""
        waiting = sum(count for state, count in self.counts.items() if not state.is_final)
        return self.bulk.num_inputs - waiting


@dataclass(frozen=True, slots=True)
class InputOutcome:
    """What became of one input."""

    #: Its place, from 0.
    index: int
    #: None: it has been removed.
    task: Task | None
    #: Its output; empty unless it succeeded.
    chunks: tuple[JournalChunk, ...] = ()

    @property
    def has_ended(self) -> bool:
        return self.task is None or self.task.state.is_final


@dataclass(frozen=True, slots=True)
class _Page:
    """Some inputs as they stand, and their bulk as it stood then."""

    bulk: Bulk
    start: int
    outcomes: tuple[InputOutcome, ...]

    @property
    def end(self) -> int:
        return self.start + len(self.outcomes)

    @property
    def is_last(self) -> bool:
        return self.end >= self.bulk.num_inputs


class BulkBook:
    """Every coroutine returns after its effect is on disk, or raises and has had none, unless it
    says otherwise. All may raise StoreUnavailable, and may be repeated then."""

    def __init__(self, ledger: Ledger, rules: Rules, new_id: Callable[[], str]) -> None:
        self._ledger, self._rules, self._new_id = ledger, rules, new_id
        self._one_batch = asyncio.Semaphore(1)

    def __repr__(self) -> str:
        return f"<BulkBook {self._ledger!r}>"

    # -- filling

    async def begin(
        self,
        tenant: str,
        model: str,
        *,
        priority_class: str = BULK_CLASS,
        name: str = "",
        idempotency_key: str | None = None,
    ) -> Bulk:
        """A new bulk, or the one the key has already. Raises InputsDiffer, InvalidRequest,
        ClassNotAllowed."""
        now = self._ledger.clock.now()
        bulk = Bulk(self._new_id(), tenant, model, priority_class, now, name, idempotency_key)
        return await self._ledger.store.run(lambda tx: bulks.begin(tx, bulk, now))

    async def extend(self, bulk_id: str, start: int, submissions: Sequence[Submission]) -> Bulk:
        """Accept inputs from place ``start`` on, all or none; those that are there already are not
        doubled. At most ``BATCH`` at once. Raises BulkClosed, InputsDiffer, InvalidRequest,
        QuotaExceeded."""
        if len(submissions) > BATCH:
            raise ValueError(f"{len(submissions)} inputs at once; at most {BATCH} may be")
        ids = [self._new_id() for _ in submissions]
        async with self._one_batch:
            now = self._ledger.clock.now()
            return await self._ledger.run(
                lambda tx: bulks.extend(tx, self._rules, bulk_id, start, submissions, ids, now)
            )

    async def close(self, bulk_id: str, tenant: str | None = None) -> Bulk:
        """No more inputs come. Idempotent."""
        now = self._ledger.clock.now()
        return await self._ledger.store.run(lambda tx: bulks.close(tx, bulk_id, tenant, now))

    async def cancel(self, bulk_id: str, tenant: str | None = None, reason: str = "") -> Bulk:
        """Take the bulk back: nothing more is accepted, and what has not ended is cancelled, batch
        by batch. Idempotent; when it is broken off, :meth:`sweep` goes on with it."""
        now = self._ledger.clock.now()
        bulk = await self._ledger.store.run(lambda tx: bulks.revoke(tx, bulk_id, tenant, now))
        await self._cancel_tasks(bulk_id, reason)
        return bulk

    # -- looking

    async def bulk(self, bulk_id: str, tenant: str | None = None) -> Bulk:
        """Raises BulkNotFound, also when ``tenant`` is given and is not the owner."""
        return await self._ledger.store.read(lambda tx: bulks.owned(tx, bulk_id, tenant))

    async def progress(self, bulk_id: str, tenant: str | None = None) -> Progress:
        """Raises BulkNotFound."""

        def query(tx: Transaction) -> Progress:
            return Progress(bulks.owned(tx, bulk_id, tenant), tx.bulk_counts(bulk_id))

        return await self._ledger.store.read(query)

    async def bulks(
        self, *, tenant: str | None = None, limit: int = 100, before: str | None = None
    ) -> list[Bulk]:
        """Newest first; ``before`` is the last id of the page before."""
        return await self._ledger.store.read(
            lambda tx: tx.bulks(tenant=tenant, limit=limit, before=before)
        )

    async def outcomes(self, bulk_id: str, start: int = 0) -> AsyncIterator[InputOutcome]:
        """What became of the inputs that have ended by now, from place ``start`` on, in order.
        Raises BulkNotFound."""
        while True:
            page = await self._page(bulk_id, start)
            for outcome in page.outcomes:
                if outcome.has_ended:
                    yield outcome
            if page.is_last:
                return
            start = page.end

    async def follow(self, bulk_id: str, start: int = 0) -> AsyncIterator[InputOutcome]:
        """What becomes of every input from place ``start`` on, in order, each when it has ended and
        all before it have; until the bulk is closed and its last input has ended.

        Raises:
            BulkNotFound: there is no such bulk, or it has been removed meanwhile.
        """
        while True:
            page = await self._page(bulk_id, start)
            awaited = None
            for outcome in page.outcomes:
                if not outcome.has_ended:
                    awaited = outcome.task
                    break
                yield outcome
                start = outcome.index + 1
            if awaited is not None:
                await self._ended(awaited.id)
            elif not page.is_last:
                continue
            elif page.bulk.closed_at is not None:
                return
            # Several end, or come in, while this sleeps, and are read together.
            await asyncio.sleep(LOOK_AGAIN_S)

    # -- looking after bulks

    async def sweep(self) -> list[Bulk]:
        """Cancel bulks that nobody has closed in time, and go on with cancellations that were
        broken off; the former."""
        before = self._ledger.clock.now() - OPEN_FOR_S
        left = await self._ledger.store.read(lambda tx: tx.bulks_left_open(before, BATCH))
        for bulk in left:
            await self.cancel(bulk.id, reason=f"its bulk was not closed within {OPEN_FOR_S:g} s")
        for bulk in await self._ledger.store.read(lambda tx: tx.bulks_to_cancel(BATCH)):
            await self._cancel_tasks(bulk.id, "its bulk was cancelled")
        return left

    async def purge(self, closed_before: float) -> int:
        """Remove bulks closed before a moment whose tasks have been removed; how many."""
        num_removed = 0
        while True:
            some = await self._ledger.store.run(lambda tx: bulks.purge(tx, closed_before, BATCH))
            num_removed += some
            if some < BATCH:
                return num_removed

    # -- how

    async def _cancel_tasks(self, bulk_id: str, reason: str) -> None:
        while True:
            async with self._one_batch:
                now = self._ledger.clock.now()
                ended = await self._ledger.run(
                    lambda tx: bulks.cancel_some(tx, self._rules, bulk_id, reason, now, BATCH)  # noqa: B023  # run before the next turn
                )
            if len(ended) < BATCH:
                return

    async def _page(self, bulk_id: str, start: int) -> _Page:
        return await self._ledger.store.read(lambda tx: _page(tx, bulk_id, start))

    async def _ended(self, task_id: str) -> None:
        """Wait until the task may have ended."""
        watcher = self._ledger.watchers.attach(task_id)
        try:
            watcher.catch_up()
            task = await self._ledger.store.read(lambda tx: tx.task(task_id))
            while task is not None and not task.state.is_final:
                news = await watcher.next()
                if news is None:
                    return
                task = news[0]
        finally:
            self._ledger.watchers.detach(watcher)


def _page(tx: Transaction, bulk_id: str, start: int) -> _Page:
    bulk = bulks.owned(tx, bulk_id)
    end = min(start + PAGE, bulk.num_inputs)
    tasks = {task.bulk_index: task for task in tx.bulk_tasks(bulk_id, start, PAGE)}
    outcomes: list[InputOutcome] = []
    num_chunks = 0
    for index in range(start, end):
        task = tasks.get(index)
        outcomes.append(InputOutcome(index, task, _output(tx, task)))
        num_chunks += len(outcomes[-1].chunks)
        if num_chunks > PAGE_CHUNKS:
            break
    return _Page(bulk, start, tuple(outcomes))


def _output(tx: Transaction, task: Task | None) -> tuple[JournalChunk, ...]:
    if task is None or task.state is not TaskState.SUCCEEDED or not task.num_chunks:
        return ()
    return tuple(tx.chunks(task.id, 0, task.num_chunks))
