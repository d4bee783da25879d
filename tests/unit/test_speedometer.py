"""What is measured of replicas on each kind of device, and kept."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest
import pytest_asyncio

from scheduler.clock import ManualClock
from scheduler.cluster_view import NodeView, ReplicaView
from scheduler.scaling import Measure
from scheduler.speedometer import Speedometer
from scheduler.stores.sqlite import Store
from scheduler.task import JournalChunk
from scheduler.task_book import TaskBook
from scheduler.testing.tasks import MODEL, submission


class Shop:
    """Two nodes of different kinds with a slot each, and somebody who works there."""

    def __init__(self) -> None:
        self.clock, self.busy = ManualClock(), {"r1": 0, "r2": 0}
        self.num_slots = 1
        self.book = TaskBook(Store(":memory:"), self.clock, lease_ttl_s=1e9)
        self.speedometer = Speedometer(self.book.ledger, self)

    def nodes(self) -> Sequence[NodeView]:
        return [
            NodeView(run, run, True, 0, (self._replica(run),), kind)
            for run, kind in (("r1", "slow"), ("r2", "fast"))
        ]

    def _replica(self, run: str) -> ReplicaView:
        return ReplicaView(f"{MODEL}__r0", MODEL, "ready", self.num_slots, self.busy[run])

    async def work(self, run: str, chunks_per_s: int, seconds: int = 10, **changes: int) -> None:
        """Two weighted tokens a chunk."""
        await self.book.submit(submission(**changes))
        (grant,) = await self.book.claim(MODEL, runner=run, replica=f"{MODEL}__r0")
        task, self.busy[run] = grant.task, 1
        for second in range(seconds):
            self.clock.advance(1)
            first = second * chunks_per_s
            if task.cost_per_token:
                chunks = [JournalChunk(first + i, (7,), "") for i in range(chunks_per_s)]
                await self.book.append(task.id, task.fence, chunks)
        await self.book.succeed(task.id, task.fence, {})
        self.busy[run] = 0

    async def kept(self) -> list[Measure]:
        return list(await self.book.ledger.store.read(lambda tx: tx.measures(MODEL)))


@pytest_asyncio.fixture
async def shop() -> AsyncIterator[Shop]:
    given = Shop()
    yield given
    await given.book.ledger.store.close()


async def test_each_kind_of_device_has_its_own_speed(shop: Shop) -> None:
    await shop.work("r1", 1, prompt_cost=0)
    await shop.work("r2", 5, prompt_cost=0)

    measured = shop.speedometer.measured(shop.clock.now())

    assert measured[MODEL, "slow"].cost_per_slot == pytest.approx(2.0, rel=0.15)
    assert measured[MODEL, "fast"].cost_per_slot == pytest.approx(10.0, rel=0.15)
    assert measured[MODEL, "slow"].was_full


async def test_work_without_tokens_counts_where_it_was_done(shop: Shop) -> None:
    await shop.work("r2", 0, cost_per_token=0, prompt_cost=0, estimated_cost=100)
    await shop.work("r2", 0, cost_per_token=0, prompt_cost=0, estimated_cost=100)

    measured = shop.speedometer.measured(shop.clock.now())

    assert set(measured) == {(MODEL, "fast")}
    assert measured[MODEL, "fast"].cost_per_slot == pytest.approx(10.0, rel=0.1)


async def test_the_time_to_the_first_chunk_is_measured_from_the_claim(shop: Shop) -> None:
    await shop.work("r1", 1)

    assert shop.speedometer.measured(shop.clock.now())[MODEL, "slow"].first_chunk_s == 1.0


async def test_what_was_measured_is_kept_beside_what_is_known_of_starts(shop: Shop) -> None:
    before = Measure(MODEL, "slow", start_times_s=(20.0,))
    await shop.book.ledger.store.run(lambda tx: tx.put_measure(before))
    await shop.work("r1", 1)

    await shop.speedometer.keep()

    (kept,) = await shop.kept()
    assert kept.cost_per_slot == pytest.approx(2.0, rel=0.15)
    assert kept.start_times_s == (20.0,)


async def test_a_speed_with_slots_to_spare_does_not_replace_one_with_every_slot_busy(
    shop: Shop,
) -> None:
    full = Measure(MODEL, "slow", 0.5, was_full=True)
    await shop.book.ledger.store.run(lambda tx: tx.put_measure(full))
    shop.num_slots = 8
    await shop.work("r1", 1)

    await shop.speedometer.keep()

    assert await shop.kept() == [full]
