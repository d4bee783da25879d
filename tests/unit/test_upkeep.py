"""What ended long ago is removed, and nothing else."""

from __future__ import annotations

import pytest
from scheduler.upkeep import Upkeep

from scheduler.bulk_book import BulkBook
from scheduler.clock import ManualClock
from scheduler.errors import StoreUnavailable
from scheduler.stores.sqlite import MEMORY, Store
from scheduler.task import Submission
from scheduler.task_book import PURGE_BATCH, TaskBook


async def ended(book: TaskBook, count: int) -> None:
    for _ in range(count):
        task, _ = await book.submit(Submission("ann", "demo", {"prompt": "x"}, 1))
        await book.cancel(task.id)


async def test_a_task_is_removed_when_its_retention_is_over() -> None:
    store, clock = Store(MEMORY), ManualClock()
    book = TaskBook(store, clock, lease_ttl_s=10)
    await ended(book, 1)
    upkeep = Upkeep(book, BulkBook(book.ledger, book.rules, book.new_id), clock, retention_s=100)

    clock.advance(100)
    early = await upkeep.purge()
    clock.advance(1)
    late = await upkeep.purge()

    assert (early, late, await book.tasks()) == (0, 1, [])
    await store.close()


async def test_without_a_retention_everything_is_kept() -> None:
    store, clock = Store(MEMORY), ManualClock()
    book = TaskBook(store, clock, lease_ttl_s=10)
    await ended(book, 1)
    clock.advance(1e9)

    assert (
        await Upkeep(
            book, BulkBook(book.ledger, book.rules, book.new_id), clock, retention_s=0
        ).purge()
        == 0
    )
    assert len(await book.tasks()) == 1
    await store.close()


async def test_a_purge_is_many_small_transactions() -> None:
    store, clock = Store(MEMORY), ManualClock()
    book = TaskBook(store, clock, lease_ttl_s=10)
    await ended(book, PURGE_BATCH + 1)
    clock.advance(1)
    before = store.num_commits

    removed = await book.purge(clock.now())

    assert (removed, store.num_commits - before) == (PURGE_BATCH + 1, 2)
    await store.close()


async def test_a_store_that_refuses_is_tried_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    store, clock = Store(MEMORY), ManualClock()
    book = TaskBook(store, clock, lease_ttl_s=10)
    await ended(book, 1)
    clock.advance(10)
    upkeep = Upkeep(book, BulkBook(book.ledger, book.rules, book.new_id), clock, retention_s=1)

    async def refuse(before: float) -> int:
        raise StoreUnavailable("full")

    with monkeypatch.context() as patched:
        patched.setattr(book, "purge", refuse)
        assert await upkeep.purge() == 0

    assert await upkeep.purge() == 1
    await store.close()
