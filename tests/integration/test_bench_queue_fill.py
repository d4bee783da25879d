"""The store that the queue's benchmark fills behind the moves' back."""

from __future__ import annotations

import pytest

from benchmarks.queue.parts.decision import Size, fill
from scheduler.clock import SystemClock
from scheduler.stores.sqlite import MEMORY, Store
from scheduler.task_book import TaskBook
from scheduler.testing.tasks import MODEL, problems


@pytest.mark.parametrize("size", [Size(3, 10), Size(10, 3)])
async def test_a_filled_store_adds_up_and_its_tasks_are_granted(size: Size) -> None:
    store = Store(MEMORY)

    await fill(store, size)

    assert await store.read(problems) == []
    book = TaskBook(store, SystemClock(), lease_ttl_s=60)
    granted = await book.claim(MODEL, runner="r", replica="x", limit=20)
    assert len(granted) == size.num_queued
    assert await store.read(problems) == []
    await store.close()
