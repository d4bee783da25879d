"""The explainer measures what is written down, and explains by it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest
import pytest_asyncio

from scheduler.clock import ManualClock
from scheduler.cluster_view import NodeView, ReplicaView
from scheduler.explainer import Explainer
from scheduler.speedometer import Speedometer
from scheduler.stores.sqlite import Store
from scheduler.task import JournalChunk, Submission
from scheduler.task_book import TaskBook
from scheduler.testing.models import config
from scheduler.testing.tasks import MODEL, submission


class Cluster:
    """One replica with one slot."""

    in_flight = 0

    def nodes(self) -> Sequence[NodeView]:
        replica = ReplicaView("demo__r0", MODEL, "ready", 1, self.in_flight)
        lost = NodeView("gone", "r0", False, 0, (replica,))
        return lost, NodeView("here", "r1", True, 0, (replica,))


class Work:
    """A book, and somebody who works on its tasks one after the other."""

    def __init__(self) -> None:
        self.clock, self.cluster = ManualClock(), Cluster()
        self.book = TaskBook(Store(":memory:"), self.clock, lease_ttl_s=1e9)
        ledger = self.book.ledger
        speedometer = Speedometer(ledger, self.cluster)
        configs = {MODEL: config()}
        self.explainer = Explainer(ledger, self.book.rules, self.cluster, configs, speedometer)

    async def submit(self, given: Submission | None = None) -> str:
        return (await self.book.submit(given or submission()))[0].id

    async def work(self, seconds: int = 10, cost: int = 20) -> None:
        """Do the next task, two weighted tokens a second."""
        (grant,) = await self.book.claim(MODEL, runner="r1", replica="demo__r0")
        task, self.cluster.in_flight = grant.task, 1
        for seq in range(seconds):
            self.clock.advance(1)
            if task.cost_per_token:
                await self.book.append(task.id, task.fence, [JournalChunk(seq, (7,), "")])
        await self.book.succeed(task.id, task.fence, {})


@pytest_asyncio.fixture
async def work() -> AsyncIterator[Work]:
    given = Work()
    yield given
    await given.book.ledger.store.close()


async def test_the_speed_is_that_of_what_was_written_down(work: Work) -> None:
    for _ in range(4):
        await work.submit()
        await work.work()
    first, second = await work.submit(), await work.submit()
    await work.book.claim(MODEL, runner="r1", replica="demo__r0")

    told = await work.explainer.explain(second)

    assert told.basis is not None
    # A prompt of 5 in the first of ten seconds, and two weighted tokens in each.
    assert told.basis.cost_per_s == pytest.approx(2.5, rel=0.1)
    assert told.basis.used_ratio == 1.0
    assert told.basis.was_full
    assert told.estimated_start_at == pytest.approx(work.clock.now() + 10, rel=0.15)
    assert (await work.explainer.explain(first)).state == "leased"


async def test_estimates_that_were_too_high_are_corrected(work: Work) -> None:
    for _ in range(4):
        await work.submit()
        await work.work(seconds=5)
    task_id = await work.submit()

    told = await work.explainer.explain(task_id)

    assert told.basis is not None
    assert told.basis.used_ratio == pytest.approx(15 / 25)


async def test_work_without_tokens_counts_when_it_is_done(work: Work) -> None:
    for _ in range(4):
        await work.submit(submission(cost_per_token=0, prompt_cost=0, estimated_cost=100))
        await work.work(seconds=10)
    task_id = await work.submit()

    told = await work.explainer.explain(task_id)

    assert told.basis is not None
    assert told.basis.cost_per_s == pytest.approx(10, rel=0.35)


async def test_an_operator_s_number_of_replicas_counts(work: Work) -> None:
    task_id = await work.submit()
    await work.book.ledger.set_desired(lambda tx: tx.put_desired_replicas(MODEL, 0))

    told = await work.explainer.explain(task_id)

    assert told.short[0].code == "no_replica_desired"
