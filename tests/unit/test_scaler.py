"""The scaler reads the store, decides, and keeps what it decided."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from handlers.scale_section import Scale
from scheduler.autoscaler.leader import Leader
from scheduler.autoscaler.placement import place
from scheduler.autoscaler.scaler import Scaler
from scheduler.autoscaler.sidecar import Sidecar
from scheduler.clock import ManualClock
from scheduler.cluster_view import NodeView, Placed, ReplicaView
from scheduler.node_book import NodeBook
from scheduler.operations import Operations
from scheduler.records import changed
from scheduler.scaling import MAX_DECISIONS, Measure, ScaleDecision
from scheduler.speedometer import Speedometer
from scheduler.stores.sqlite import Store
from scheduler.task_book import TaskBook
from scheduler.testing.models import config
from scheduler.testing.tasks import MODEL, submission
from tests.waiting import until

CONFIG = config(MODEL, scale=Scale(max=4, use_ratio=0.8), max_batch=1)
KIND = "cpu"


class Plant:
    """A scaler, a store, and one node whose replicas do what placement says."""

    def __init__(self) -> None:
        self.clock, self.configs = ManualClock(), {MODEL: CONFIG}
        self.book = TaskBook(Store(":memory:"), self.clock, lease_ttl_s=1e9)
        self.ledger = self.book.ledger
        self.operations = Operations(self.ledger, self.book.rules.queue)
        self.replicas: tuple[ReplicaView, ...] = ()
        self.placing: Mapping[str, Sequence[Placed]] = {}
        self.restart()

    def restart(self) -> None:
        """A control plane that begins anew on the same store."""
        self.scaler = Scaler(self.configs, self.ledger, Speedometer(self.ledger, self))
        self.placing = {}

    def nodes(self) -> Sequence[NodeView]:
        return (NodeView("here", "r1", True, 0, self.replicas, KIND),)

    def on_nodes_changed(self, listener: Any) -> None: ...

    def placed(self) -> Mapping[str, Sequence[Placed]]:
        return self.placing

    async def place(self, epoch: int, wanted: Mapping[str, Sequence[Placed]]) -> bool:
        self.placing = wanted
        return True

    async def look(self, times: int = 1, *, is_ready: bool = True) -> int:
        """Every five seconds; how many are wanted after the last one."""
        desired: dict[str, int] = {}
        for _ in range(times):
            desired = await self.scaler.desired(self.nodes(), self.placing)
            plan = place(desired, self.configs, self.nodes(), self.placing)
            self.placing = plan.replicas
            state = "ready" if is_ready else "starting"
            self.replicas = tuple(
                ReplicaView(placed.name, MODEL, state, 1, 0) for placed in plan.replicas["r1"]
            )
            self.clock.advance(5)
        return desired[MODEL]

    async def submit(self, count: int, **changes: Any) -> None:
        for _ in range(count):
            await self.book.submit(submission(**changes))

    async def decisions(self) -> list[ScaleDecision]:
        """Newest first."""
        return list((await self.operations.scale_story(MODEL, 500)).decisions)

    async def put(self, measure: Measure) -> None:
        await self.ledger.store.run(lambda tx: tx.put_measure(measure))


@pytest_asyncio.fixture
async def plant() -> AsyncIterator[Plant]:
    given = Plant()
    yield given
    await given.ledger.store.close()


async def test_decisions_that_change_nothing_for_the_same_reason_are_one_entry(
    plant: Plant,
) -> None:
    begun_at = plant.clock.now()

    await plant.look(4)

    (told,) = await plant.decisions()
    assert (told.action, told.num_before, told.num_after) == ("nothing", 1, 1)
    assert (told.num_times, told.decided_at, told.last_at) == (4, begun_at, begun_at + 15)


async def test_what_waits_is_seen_in_the_store_and_gets_replicas(plant: Plant) -> None:
    await plant.put(Measure(MODEL, KIND, 1.0, was_full=True, start_times_s=(10.0,)))
    await plant.submit(4, estimated_cost=50)

    num = await plant.look(4)

    up = next(d for d in await plant.decisions() if d.action == "up")
    # 200 of cost at one a second and replica, within 15 seconds.
    assert num == 4
    assert (up.reason, up.inputs["queued_cost"], up.inputs["speeds"]) == ("queue", 200, {KIND: 1.0})


async def test_a_speed_measured_with_slots_to_spare_does_not_count(plant: Plant) -> None:
    await plant.put(Measure(MODEL, KIND, 1000.0, was_full=False))
    await plant.submit(3)

    num = await plant.look(4)

    assert num == 4  # three tasks, and 0.8 of the one slot of each
    assert (await plant.decisions())[0].inputs["speed"] is None


async def test_what_comes_is_not_known_before_a_task_has_finished(plant: Plant) -> None:
    async def arriving() -> float | None:
        for _ in range(4):
            await plant.submit(1, estimated_cost=100)
            await plant.look()
        found: float | None = (await plant.decisions())[0].inputs["arriving"]
        return found

    before = await arriving()
    await plant.put(Measure(MODEL, KIND, used_ratio=0.5))

    assert before is None
    assert await arriving() == pytest.approx(10.0)  # half of a hundred every five seconds


async def test_a_capped_tenant_s_backlog_buys_nothing_beyond_its_cap(plant: Plant) -> None:
    tenant = await plant.operations.tenant("ann")
    capped = changed(tenant.tenant, max_in_flight=1)
    await plant.ledger.store.run(lambda tx: tx.put_tenant(capped))
    await plant.submit(100)

    await plant.look()

    (told,) = await plant.decisions()
    assert told.inputs["num_queued"] == 1


async def test_how_long_a_start_took_is_kept_by_device_kind(plant: Plant) -> None:
    await plant.look(3, is_ready=False)
    plant.replicas = tuple(replace(r, state="ready") for r in plant.replicas)
    await plant.look()

    (measure,) = (await plant.operations.scale_story(MODEL, 1)).measures
    assert (measure.device_kind, measure.start_times_s) == (KIND, (10.0,))


async def test_a_replica_that_was_there_before_says_nothing_about_starts(plant: Plant) -> None:
    await plant.look(3)
    plant.restart()

    await plant.look(3)

    assert (await plant.operations.scale_story(MODEL, 1)).measures == ()


async def test_after_a_restart_the_number_decided_last_is_held(plant: Plant) -> None:
    await plant.ledger.store.run(lambda tx: tx.put_scaled_replicas(MODEL, 3))

    assert await plant.look() == 3
    assert await plant.look(58) == 3
    assert await plant.look(10) == 1


async def test_an_operator_s_number_wins_and_is_written_down(plant: Plant) -> None:
    await plant.operations.set_desired_replicas(MODEL, 2)

    assert await plant.look(3) == 2
    (told,) = await plant.decisions()
    assert (told.reason, told.num_after) == ("operator", 2)


async def test_a_number_that_is_given_back_is_held_until_less_was_needed_for_a_window(
    plant: Plant,
) -> None:
    await plant.look(2)
    await plant.operations.set_desired_replicas(MODEL, 3)
    await plant.look(2)

    await plant.operations.give_back_replicas(MODEL)

    assert await plant.look() == 3
    assert await plant.look(70) == 1


async def test_a_model_without_the_section_keeps_its_number_and_has_no_decisions(
    plant: Plant,
) -> None:
    plant.configs = {MODEL: config(MODEL, num_replicas=2)}
    plant.restart()
    await plant.submit(100)

    assert await plant.look(4) == 2
    assert await plant.decisions() == []


async def test_work_for_a_model_that_sleeps_is_decided_about_at_the_next_look(
    plant: Plant,
) -> None:
    plant.configs = {MODEL: config(MODEL, num_replicas=0, scale=Scale(max=2, min=0))}
    plant.restart()
    desired = await plant.scaler.desired(plant.nodes(), plant.placing)
    await plant.submit(1)

    assert plant.scaler.wake(MODEL)

    assert (desired[MODEL], await plant.look()) == (0, 1)
    assert not plant.scaler.wake(MODEL)


async def test_what_there_is_no_room_for_is_told(plant: Plant) -> None:
    plant.configs = {MODEL: config(MODEL, scale=Scale(max=4), device_type="gpu", max_batch=1)}
    plant.restart()
    await plant.submit(8)

    await plant.look(4)

    told = (await plant.decisions())[0]
    assert (told.reason, plant.scaler.lacking) == ("no_room", {MODEL: 4})


async def test_what_there_is_no_room_for_is_missing_beyond_what_was_planned(plant: Plant) -> None:
    plant.configs = {MODEL: config(MODEL, scale=Scale(max=4), device_type="gpu", max_batch=1)}
    plant.restart()
    await plant.submit(8)

    async def park(*_: str) -> None: ...

    leader = Leader(NodeBook(plant.ledger, "plane"), plant.clock, term_s=6.0)
    sidecar = Sidecar(
        plant.configs, plant.scaler, plant, leader, park, plant.clock, reconcile_s=0.001
    )
    running = asyncio.create_task(sidecar.run())

    def missing() -> Mapping[str, int]:
        plant.clock.advance(5)
        return sidecar.missing

    assert await until(missing, lambda found: found == {MODEL: 4})
    assert sidecar.plan.missing == {MODEL: 1}
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_the_oldest_decisions_go(plant: Plant) -> None:
    def entry(number: int) -> ScaleDecision:
        return ScaleDecision(MODEL, number, 0.0, 0.0, 1, "up", 1, 2, "queue", "", {})

    def command(tx: Any) -> None:
        for number in range(1, MAX_DECISIONS + 11):
            tx.put_scale_decision(entry(number))

    await plant.ledger.store.run(command)

    kept = await plant.ledger.store.read(lambda tx: tx.scale_decisions(MODEL, 10_000))
    assert [kept[0].number, kept[-1].number] == [MAX_DECISIONS + 10, 11]
