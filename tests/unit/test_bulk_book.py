"""The book of bulks: outcomes in order as they come, and bulks that were left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
import pytest_asyncio

from scheduler import bulk_book
from scheduler.bulk_book import OPEN_FOR_S, BulkBook
from scheduler.clock import ManualClock
from scheduler.stores.sqlite import Store
from scheduler.task import Submission, TaskState
from scheduler.task_book import TaskBook
from scheduler.testing.tasks import MODEL, chunk, submission


class Books:
    """The two books over one store in memory."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.tasks = TaskBook(Store(":memory:"), self.clock, lease_ttl_s=10.0)
        self.bulks = BulkBook(self.tasks.ledger, self.tasks.rules, self.tasks.new_id)

    async def begin(self, count: int, *, is_closed: bool = True) -> str:
        bulk = await self.bulks.begin("ann", MODEL)
        await self.extend(bulk.id, 0, count)
        if is_closed:
            await self.bulks.close(bulk.id)
        return bulk.id

    async def extend(self, bulk_id: str, start: int, count: int) -> None:
        await self.bulks.extend(bulk_id, start, inputs(bulk_id, start, count))

    async def work(self, count: int = 1) -> None:
        for grant in await self.tasks.claim(MODEL, runner="r", replica="demo__r0", limit=count):
            await self.tasks.append(grant.task.id, grant.task.fence, [chunk(0)])
            await self.tasks.succeed(grant.task.id, grant.task.fence, {})


def inputs(bulk_id: str, start: int, count: int) -> Sequence[Submission]:
    return [
        submission(priority_class="batch", bulk_id=bulk_id, bulk_index=place)
        for place in range(start, start + count)
    ]


@pytest_asyncio.fixture
async def books(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Books]:
    monkeypatch.setattr(bulk_book, "LOOK_AGAIN_S", 0.001)
    opened = Books()
    yield opened
    await opened.tasks.ledger.store.close()


async def test_outcomes_come_in_order_whoever_ends_first(books: Books) -> None:
    bulk_id = await books.begin(3)
    grants = await books.tasks.claim(MODEL, runner="r", replica="demo__r0", limit=3)
    following = aiter(books.bulks.follow(bulk_id))
    first = asyncio.ensure_future(anext(following))

    for grant in (grants[2], grants[0], grants[1]):
        await books.tasks.succeed(grant.task.id, grant.task.fence, {})
    seen = [await first, *[outcome async for outcome in following]]

    assert [outcome.index for outcome in seen] == [0, 1, 2]
    assert [outcome.task and outcome.task.id for outcome in seen] == [g.task.id for g in grants]


async def test_an_open_bulk_is_followed_until_it_is_closed(books: Books) -> None:
    bulk_id = await books.begin(1, is_closed=False)
    following = aiter(books.bulks.follow(bulk_id))
    await books.work()
    assert (await anext(following)).index == 0

    second = asyncio.ensure_future(anext(following))
    await books.extend(bulk_id, 1, 1)
    await books.work()
    assert (await asyncio.wait_for(second, 5)).index == 1
    end = asyncio.ensure_future(anext(following))
    await books.bulks.close(bulk_id)

    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(end, 5)


async def test_an_outcome_has_its_output(books: Books) -> None:
    bulk_id = await books.begin(1)
    await books.work()

    (outcome,) = [each async for each in books.bulks.outcomes(bulk_id)]

    assert outcome.chunks == (chunk(0),)


async def test_outcomes_are_read_page_by_page(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_book, "PAGE", 4)
    monkeypatch.setattr(bulk_book, "PAGE_CHUNKS", 2)
    bulk_id = await books.begin(10)
    await books.work(9)

    now = [outcome.index async for outcome in books.bulks.outcomes(bulk_id, 1)]
    await books.work()
    whole = [outcome.index async for outcome in books.bulks.follow(bulk_id)]

    assert now == list(range(1, 9))
    assert whole == list(range(10))


async def test_an_input_whose_task_was_removed_keeps_its_place(books: Books) -> None:
    bulk_id = await books.begin(2)
    await books.work()
    books.clock.advance(100)
    await books.tasks.purge(books.clock.now() - 50)
    await books.work()

    seen = [outcome async for outcome in books.bulks.follow(bulk_id)]

    assert [(outcome.index, outcome.task is None) for outcome in seen] == [(0, True), (1, False)]
    assert (await books.bulks.progress(bulk_id)).num_ended == 2


async def test_a_bulk_that_nobody_closes_is_cancelled(books: Books) -> None:
    left = await books.begin(3, is_closed=False)
    closed = await books.begin(3)
    books.clock.advance(OPEN_FOR_S - 1)
    assert await books.bulks.sweep() == []

    books.clock.advance(2)
    (swept,) = await books.bulks.sweep()

    assert swept.id == left
    assert (await books.bulks.progress(left)).counts == {TaskState.CANCELLED: 3}
    assert (await books.bulks.progress(closed)).counts == {TaskState.QUEUED: 3}
    assert await books.bulks.sweep() == []


async def test_a_cancellation_that_was_broken_off_is_gone_on_with(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    bulk_id = await books.begin(3)
    monkeypatch.setattr(books.bulks, "_cancel_tasks", _broken_off)
    with pytest.raises(asyncio.CancelledError):
        await books.bulks.cancel(bulk_id)
    monkeypatch.undo()

    assert (await books.bulks.bulk(bulk_id)).cancelled_at is not None
    await books.bulks.sweep()

    assert (await books.bulks.progress(bulk_id)).counts == {TaskState.CANCELLED: 3}


async def _broken_off(bulk_id: str, reason: str) -> None:
    raise asyncio.CancelledError


async def test_cancelling_goes_batch_by_batch_to_the_end(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    bulk_id = await books.begin(10)
    monkeypatch.setattr(bulk_book, "BATCH", 3)

    await books.bulks.cancel(bulk_id, "ann", "no longer wanted")

    assert (await books.bulks.progress(bulk_id)).counts == {TaskState.CANCELLED: 10}
    tasks = await books.tasks.tasks()
    assert {task.error and task.error.message for task in tasks} == {"no longer wanted"}


async def test_more_than_a_batch_at_once_is_a_bug_of_the_caller(books: Books) -> None:
    with pytest.raises(ValueError, match="at most 100"):
        await books.bulks.extend("b", 0, inputs("b", 0, 101))
