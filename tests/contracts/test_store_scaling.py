"""What every store keeps about scaling: load, measures, decisions."""

from __future__ import annotations

from scheduler.flow import Tenant
from scheduler.records import changed
from scheduler.scaling import Measure, ModelLoad, ScaleDecision
from scheduler.stores.base import Store, Transaction
from scheduler.testing.tasks import MODEL
from tests.contracts.store_subjects import add, flow, leased


async def test_replicas_that_were_decided_on_are_kept_apart_from_operators(store: Store) -> None:
    await store.run(lambda tx: tx.put_scaled_replicas(MODEL, 2))
    await store.run(lambda tx: tx.put_scaled_replicas(MODEL, 3))

    assert await store.read(lambda tx: tx.scaled_replicas()) == {MODEL: 3}
    assert await store.read(lambda tx: tx.desired_replicas()) == {}


async def test_the_load_is_what_is_queued_what_runs_and_what_was_served(store: Store) -> None:
    half = leased("t1", estimated_cost=30, charged_cost=30, num_tokens=4)
    other = leased("t2", model="other", estimated_cost=500, charged_cost=500)
    await add(store, half, other)
    mine = flow("ann", num_queued=2, queued_cost=50, num_leased=1, charged_cost=130)

    await store.run(lambda tx: tx.put_flow(mine))

    # Of the 30 that were charged for the running task 5 + 2 * 4 are done.
    assert await store.read(lambda tx: tx.load(MODEL)) == ModelLoad(
        num_queued=2,
        queued_cost=50,
        all_queued_cost=50,
        num_running=1,
        running_cost=30,
        running_done=13,
        served_cost=113,
    )


async def test_what_a_tenant_may_not_run_now_is_queued_and_no_load(store: Store) -> None:
    def command(tx: Transaction) -> None:
        tx.put_tenant(Tenant("ann", max_in_flight=3))
        tx.put_flow(flow("ann", num_queued=8, queued_cost=80))
        tx.put_flow(flow("ann", model="other", num_leased=1))
        tx.put_flow(flow("bob", num_queued=1, queued_cost=7))

    await store.run(command)

    load = await store.read(lambda tx: tx.load(MODEL))
    assert (load.num_queued, load.queued_cost, load.all_queued_cost) == (3, 27, 87)


async def test_a_model_without_work_has_no_load(store: Store) -> None:
    assert await store.read(lambda tx: tx.load("unheard of")) == ModelLoad()


async def test_measures_are_kept_by_device_kind(store: Store) -> None:
    slow = Measure(MODEL, "cpu", 12.5, True, 0.25, 0.5, (3.5, 4.0))
    fast = Measure(MODEL, "gpu")
    for each in (changed(slow, cost_per_slot=1.0), fast, slow, Measure("other", "cpu")):
        await store.run(lambda tx, each=each: tx.put_measure(each))

    assert await store.read(lambda tx: tx.measures(MODEL)) == [slow, fast]


async def test_decisions_come_newest_first_and_the_last_may_be_written_anew(store: Store) -> None:
    first = ScaleDecision(MODEL, 1, 10.0, 10.0, 1, "up", 1, 2, "queue", "it waits", {"speed": None})
    second = changed(first, number=2, action="nothing", num_before=2, reason="enough")
    for each in (first, second, changed(second, num_times=2, last_at=15.0)):
        await store.run(lambda tx, each=each: tx.put_scale_decision(each))

    found = await store.read(lambda tx: tx.scale_decisions(MODEL, 10))
    assert found == [changed(second, num_times=2, last_at=15.0), first]
    assert await store.read(lambda tx: tx.scale_decisions(MODEL, 1)) == found[:1]
    assert await store.read(lambda tx: tx.scale_decisions("other", 10)) == []
