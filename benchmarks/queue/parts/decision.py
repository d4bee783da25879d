"""(c) How the time of one claim grows with tenants and with queued tasks, on SQLite.

The store is filled through its own transactions, many tasks in each, and opened again. A claim is
measured twice: *deciding*, inside the transaction, and *claiming*, until it is on disk. Each task
that is claimed is finished and another of its tenant submitted, so that the sizes stay.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import TypeVar

from benchmarks.queue.bench import Bench
from benchmarks.queue.figures import growth
from benchmarks.report import Figure
from scheduler.clock import SystemClock
from scheduler.flow import DEFAULT_CLASS, Band, Flow
from scheduler.ids import IdSource
from scheduler.stores.base import Store, Transaction
from scheduler.stores.sqlite import Store as SqliteStore
from scheduler.task import Task, TaskState
from scheduler.task_book import TaskBook
from scheduler.testing.tasks import MODEL, submission

T = TypeVar("T")

GOAL_GROWTH = 2.0
#: Tenants that share the queue while it grows.
NUM_TENANTS = 10
_NUM_A_FILL = 10_000
_NUM_WARM_UP = 20
#: Virtual times of the flows lie below this, so that no two tenants are served in turn.
_MOST_VIRTUAL_TIME = 1_000_000
COLUMNS = (
    "tenants", "queued tasks", "deciding, µs", "growth per 100 times", "claiming, ms", "filled in s"
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Size:
    """A store's."""

    num_tenants: int
    num_queued: int


@dataclass(frozen=True, slots=True)
class Times:
    """Medians of the claims, and what filling took."""

    deciding_s: float
    claiming_s: float
    filling_s: float


def run(bench: Bench) -> None:
    sizes = bench.sizes
    by_tenants = [Size(tenants, sizes.num_shared) for tenants in sizes.num_tenants]
    by_queued = [Size(NUM_TENANTS, queued) for queued in sizes.num_queued]
    _tell(bench, "tenants", by_tenants, [size.num_tenants for size in by_tenants])
    _tell(bench, "queued tasks", by_queued, [size.num_queued for size in by_queued])


def _tell(bench: Bench, what: str, sizes: list[Size], steps: list[int]) -> None:
    times = [asyncio.run(_measure(bench, size)) for size in sizes]
    points = [(step, each.deciding_s) for step, each in zip(steps, times, strict=True)]
    grown = [growth(before, after) for before, after in pairwise(points)]
    shown = ["-", *(f"{each:.2f}" for each in grown)]
    rows = [
        [
            f"{size.num_tenants:,}",
            f"{size.num_queued:,}",
            f"{1e6 * each.deciding_s:.0f}",
            growing,
            f"{1e3 * each.claiming_s:.2f}",
            f"{each.filling_s:.0f}",
        ]
        for size, each, growing in zip(sizes, times, shown, strict=True)
    ]
    bench.report.table(f"(c) the time of one claim, by {what}", COLUMNS, rows)
    name = f"(c) deciding per 100 times the {what}"
    overall = growth(points[0], points[-1])
    bench.report.figure(Figure(name, overall, GOAL_GROWTH, is_cost=True, unit="x"))


async def _measure(bench: Bench, size: Size) -> Times:
    path = bench.cache / "decision" / "plait.db"
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in path.parent.iterdir():
        old.unlink()
    began = time.perf_counter()
    store = SqliteStore(path)
    await fill(store, size)
    await store.close()
    filling_s = time.perf_counter() - began
    store = _WatchedStore(path)
    try:
        claims = await _claims(store, bench.sizes.num_claims)
    finally:
        await store.close()
    deciding, claiming = zip(*claims, strict=True)
    return Times(statistics.median(deciding), statistics.median(claiming), filling_s)


class _WatchedStore(SqliteStore):
    """Knows how long its last command took inside the transaction."""

    took_s = 0.0

    async def run(
        self,
        command: Callable[[Transaction], T],
        then: Callable[[T | None, BaseException | None], None] | None = None,
    ) -> T:
        def watched(tx: Transaction) -> T:
            began = time.perf_counter()
            value = command(tx)
            self.took_s = time.perf_counter() - began
            return value

        return await super().run(watched, then)


async def _claims(store: _WatchedStore, count: int) -> list[tuple[float, float]]:
    """Seconds of deciding and of claiming."""
    book = TaskBook(store, SystemClock(), lease_ttl_s=600)
    found: list[tuple[float, float]] = []
    for _ in range(_NUM_WARM_UP + count):
        began = time.perf_counter()
        (grant,) = await book.claim(MODEL, runner="bench", replica=f"{MODEL}__r0")
        found.append((store.took_s, time.perf_counter() - began))
        task = grant.task
        await book.succeed(task.id, task.fence, {"reason": "eos"})
        await book.submit(submission(task.tenant))
    return found[_NUM_WARM_UP:]


# ------------------------------------------------------------------------------------- filling


async def fill(store: Store, size: Size) -> None:
    """Queue tasks of the tenants in turn, as if all had been accepted at this moment."""
    tasks = _tasks(size)
    while some := list(islice(tasks, _NUM_A_FILL)):
        await store.run(lambda tx, some=some: _add(some, tx.add_task))
    flows = _flows(size)
    while some_flows := list(islice(flows, _NUM_A_FILL)):
        await store.run(lambda tx, some=some_flows: _add(some, tx.put_flow))
    num_active = min(size.num_tenants, size.num_queued)
    band = Band(MODEL, DEFAULT_CLASS, num_active=num_active, policy="virtual_time")
    await store.run(lambda tx: tx.put_band(band))


def _add(what: Iterable[T], put: Callable[[T], None]) -> None:
    for each in what:
        put(each)


def _tasks(size: Size) -> Iterator[Task]:
    clock = SystemClock()
    new_id, now = IdSource(clock), clock.now()
    for number in range(size.num_queued):
        given = submission(_tenant(number % size.num_tenants))
        yield Task(
            id=new_id(),
            tenant=given.tenant,
            model=given.model,
            document=given.document,
            state=TaskState.QUEUED,
            priority=given.priority,
            idempotency_key=None,
            deadline_at=None,
            estimated_cost=given.estimated_cost,
            prompt_cost=given.prompt_cost,
            cost_per_token=given.cost_per_token,
            accepted_at=now,
            queued_at=now,
        )


def _flows(size: Size) -> Iterator[Flow]:
    draw, cost = random.Random(1), submission().estimated_cost
    for number in range(min(size.num_tenants, size.num_queued)):
        num_queued = (size.num_queued - number - 1) // size.num_tenants + 1
        virtual_time = draw.randrange(_MOST_VIRTUAL_TIME)
        yield Flow(
            MODEL,
            DEFAULT_CLASS,
            _tenant(number),
            virtual_time,
            num_queued=num_queued,
            queued_cost=num_queued * cost,
        )


def _tenant(number: int) -> str:
    return f"tenant-{number}"
