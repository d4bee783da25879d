"""The stores of the contract tests, and builders of what is put into them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from scheduler.flow import DEFAULT_CLASS, Flow
from scheduler.records import changed
from scheduler.stores import postgres, sqlite
from scheduler.stores.base import Store, Transaction
from scheduler.task import Task, TaskState
from scheduler.testing.tasks import MODEL

#: How to open each kind of store, empty.
OPENERS: dict[str, Callable[[pytest.FixtureRequest], Store]] = {
    "postgres": lambda request: postgres.Store(request.getfixturevalue("postgres_url")),
    "sqlite": lambda request: sqlite.Store(request.getfixturevalue("tmp_path") / "plait.db"),
    "sqlite in memory": lambda _: sqlite.Store(sqlite.MEMORY),
}


def task(task_id: str = "t1", **changes: Any) -> Task:
    blank = Task(
        id=task_id,
        tenant="ann",
        model=MODEL,
        document={"prompt": "déf", "stop": ["\n"]},
        state=TaskState.QUEUED,
        priority=0,
        idempotency_key=None,
        deadline_at=None,
        estimated_cost=25,
        prompt_cost=5,
        cost_per_token=2,
        accepted_at=10.5,
    )
    return changed(blank, **changes)


def leased(task_id: str, runner: str = "r1", expires_at: float = 100.0, **changes: Any) -> Task:
    lease = {"runner": runner, "replica": "demo__r0", "lease_expires_at": expires_at, "fence": 1}
    return task(task_id, state=TaskState.LEASED, **{**lease, **changes})


def flow(tenant: str, **changes: Any) -> Flow:
    return Flow(**{"model": MODEL, "priority_class": DEFAULT_CLASS, "tenant": tenant, **changes})


async def add(store: Store, *tasks: Task) -> None:
    def command(tx: Transaction) -> None:
        for new in tasks:
            tx.add_task(new)

    await store.run(command)


def ids(tasks: list[Task]) -> list[str]:
    return [t.id for t in tasks]


async def everything(store: Store) -> list[Task]:
    return await store.read(
        lambda tx: tx.tasks(tenant=None, model=None, state=None, limit=100, before=None)
    )
