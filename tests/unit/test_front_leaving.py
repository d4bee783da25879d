"""What becomes of a task whose client left while the store refuses."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from scheduler import moves
from scheduler.clock import ManualClock
from scheduler.errors import StoreUnavailable, TaskNotFound
from scheduler.gateway.front import Front
from scheduler.task import Task
from scheduler.testing.tasks import memory_transaction, rules, submission


class Book:
    """Refuses to cancel as often as it is told to."""

    def __init__(self, *refusals: Exception) -> None:
        self.refusals = list(refusals)
        self.cancelled: list[str] = []

    async def cancel(self, task_id: str, tenant: str | None = None, reason: str = "") -> None:
        if self.refusals:
            raise self.refusals.pop(0)
        self.cancelled.append(task_id)


def accepted() -> asyncio.Future[tuple[Task, bool]]:
    with memory_transaction() as tx:
        answer = moves.submit(tx, rules(), submission(), "t1", 0.0).value
    future: asyncio.Future[tuple[Task, bool]] = asyncio.get_running_loop().create_future()
    future.set_result(answer)
    return future


def front(book: Any) -> Front:
    return Front(book, None, {}, {}, None, ManualClock(), None, None, None)


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.gateway.front.STORE_PAUSE_S", 0)


async def test_an_abandoned_task_is_cancelled_once_the_store_takes_it() -> None:
    book = Book(StoreUnavailable("full"), StoreUnavailable("full"))

    await front(book)._cancel_abandoned(accepted())

    assert book.cancelled == ["t1"]


async def test_a_gateway_that_closes_does_not_insist_on_a_cancellation() -> None:
    book = Book(*[StoreUnavailable("full")] * 3)
    leaving = front(book)
    leaving.close()

    await leaving._cancel_abandoned(accepted())

    assert book.cancelled == []


async def test_an_abandoned_task_that_is_gone_needs_no_cancellation() -> None:
    book = Book(TaskNotFound("t1"))

    await front(book)._cancel_abandoned(accepted())

    assert book.cancelled == []
