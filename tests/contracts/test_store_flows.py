"""What every store promises of flows and bands, which say what goes next."""

from __future__ import annotations

from scheduler.flow import DEFAULT_CLASS, Band, Flow, Tenant
from scheduler.stores.base import Store, Transaction
from scheduler.task import TaskState
from scheduler.testing.tasks import MODEL
from tests.contracts.store_subjects import add, flow, task

# -- flows


async def test_an_unused_flow_is_all_zeros(store: Store) -> None:
    unused = await store.read(lambda tx: tx.flow(MODEL, DEFAULT_CLASS, "ann"))

    assert unused == Flow(MODEL, DEFAULT_CLASS, "ann")


async def test_the_next_flow_is_the_active_one_of_least_virtual_time(store: Store) -> None:
    flows = [
        flow("ann", virtual_time=5, num_queued=1),
        flow("bob", virtual_time=3, num_queued=2),
        flow("abe", virtual_time=3, num_queued=4),
        flow("idle", virtual_time=1),
        flow("eve", model="other", virtual_time=0, num_queued=1, charged_cost=7),
    ]

    def command(tx: Transaction) -> None:
        for each in flows:
            tx.put_flow(each)

    await store.run(command)

    assert await store.read(lambda tx: tx.next_flow(MODEL, DEFAULT_CLASS)) == flows[2]
    assert await store.read(lambda tx: tx.next_flow("none", DEFAULT_CLASS)) is None
    assert await store.read(lambda tx: tx.depth()) == {MODEL: 7, "other": 1}
    assert await store.read(lambda tx: tx.flows("other")) == [flows[4]]


async def test_text_is_ordered_by_its_bytes_as_in_python(store: Store) -> None:
    names = ["a b", "Zoe", "_x", "ann", "Ann", "ánn", "a-b", "ab"]

    def command(tx: Transaction) -> None:
        for name in names:
            tx.put_flow(flow(name, num_queued=1))

    await store.run(command)

    assert [f.tenant for f in await store.read(lambda tx: tx.flows(MODEL))] == sorted(names)
    assert await store.read(lambda tx: tx.next_flow(MODEL, DEFAULT_CLASS)) == flow(
        min(names), num_queued=1
    )


async def test_a_flow_is_overwritten(store: Store) -> None:
    await store.run(
        lambda tx: tx.put_flow(flow("ann", virtual_time=1, num_queued=2, charged_cost=3))
    )
    await store.run(
        lambda tx: tx.put_flow(flow("ann", virtual_time=-4, num_queued=5, charged_cost=6))
    )

    assert await store.read(lambda tx: tx.flows(MODEL)) == [
        flow("ann", virtual_time=-4, num_queued=5, charged_cost=6)
    ]


async def test_the_virtual_floor_is_kept_by_model(store: Store) -> None:
    await store.run(lambda tx: tx.put_virtual_floor(MODEL, 7))
    await store.run(lambda tx: tx.put_virtual_floor(MODEL, 9))

    assert await store.read(lambda tx: tx.virtual_floor(MODEL)) == 9
    assert await store.read(lambda tx: tx.virtual_floor("other")) == 0


async def test_a_held_flow_does_not_go_next(store: Store) -> None:
    held, free = flow("ann", num_queued=1, is_held=True), flow("bob", virtual_time=9, num_queued=1)

    def write(tx: Transaction) -> None:
        tx.put_flow(held)
        tx.put_flow(free)

    await store.run(write)

    assert await store.read(lambda tx: tx.next_flow(MODEL, DEFAULT_CLASS)) == free
    assert await store.read(lambda tx: tx.flows_of("ann")) == [held]


async def test_a_band_is_kept_by_model_and_class(store: Store) -> None:
    band = Band(MODEL, "batch", -7, 2, 9, "fcfs")
    await store.run(lambda tx: tx.put_band(Band(MODEL, "batch", 1, 1, 1)))
    await store.run(lambda tx: tx.put_band(band))

    assert await store.read(lambda tx: tx.band(MODEL, "batch")) == band
    assert await store.read(lambda tx: tx.band(MODEL, "standard")) == Band(MODEL, "standard")
    assert await store.read(lambda tx: list(tx.bands(MODEL))) == [band]


# -- what goes before others


async def test_what_waits_is_summed_up_to_a_horizon(store: Store) -> None:
    def command(tx: Transaction) -> None:
        tx.put_tenant(Tenant("gold", weight_permille=2000))
        for each in (
            flow("me", num_queued=1, queued_cost=10, virtual_time=0),
            # Stands at 10: a cost of 40 brings it to the horizon of 50, two of its tasks.
            flow("ann", num_queued=10, queued_cost=200, virtual_time=10_000),
            # The same way is worth twice the cost to it; a part of a task counts as one.
            flow("gold", num_queued=20, queued_cost=300, virtual_time=10_000),
            flow("few", num_queued=2, queued_cost=4, virtual_time=0),
            # Stands at the horizon, and goes before "me" as its name does; one does not.
            flow("even", num_queued=3, queued_cost=30, virtual_time=50_000),
            flow("odd", num_queued=3, queued_cost=30, virtual_time=50_000),
            flow("beyond", num_queued=3, queued_cost=30, virtual_time=50_001),
            flow("held", num_queued=3, queued_cost=30, is_held=True),
            flow("idle", virtual_time=0),
            flow("free", num_queued=3, queued_cost=0, virtual_time=0),
            flow("other", num_queued=3, queued_cost=30, priority_class="batch"),
        ):
            tx.put_flow(each)

    await store.run(command)

    mine = await store.read(lambda tx: tx.flow(MODEL, DEFAULT_CLASS, "me"))
    below = await store.read(lambda tx: tx.waiting_below(mine, 50_000))
    assert (below.num_tasks, below.num_flows) == (2 + 6 + 2 + 1 + 3, 5)
    assert below.cost == 40 + 90 + 4 + 10
    waiting = await store.read(lambda tx: tx.waiting(MODEL, "batch"))
    assert (waiting.num_tasks, waiting.cost, waiting.num_flows) == (3, 30, 1)


async def test_who_was_accepted_before_is_counted_in_other_flows(store: Store) -> None:
    await add(
        store,
        task("t1", tenant="bob", estimated_cost=7),
        task("t2", tenant="cy", estimated_cost=5, settled_cost=2),
        task("t3"),
        task("t4", tenant="bob"),
        task("t0", tenant="di", priority_class="batch"),
        task("t00", tenant="di", state=TaskState.PAUSED),
        task("t5"),
    )

    before = await store.read(lambda tx: tx.queued_before(task("t3"), 10))
    some = await store.read(lambda tx: tx.queued_before(task("t5"), 2))
    assert (before.num_tasks, before.cost, before.num_flows) == (2, 10, 2)
    assert not before.is_at_least
    assert (some.num_tasks, some.is_at_least) == (2, True)
