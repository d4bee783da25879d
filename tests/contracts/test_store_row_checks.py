"""What every store promises to those who look whether its rows belong together."""

from __future__ import annotations

import time

import pytest

from scheduler.flow import DEFAULT_CLASS
from scheduler.records import changed
from scheduler.stores.base import FlowCount, Store, TaskParts, Transaction
from scheduler.task import Attempt, TaskState
from scheduler.testing.tasks import MODEL, chunk
from tests.contracts.store_subjects import add, flow, ids, leased, task

FIRST = ("", "", "")


async def test_whose_rows_a_table_has_is_told_page_by_page(store: Store) -> None:
    await add(store, task("t1"), task("t3"))

    def write(tx: Transaction) -> None:
        for name in ("t1", "t2", "t3"):
            tx.add_chunks(name, [chunk(0), chunk(1)])
        tx.add_attempt("t2", Attempt(1, 1, "r", "x", 1.0, 0, 2.0))

    await store.run(write)

    asked = [
        ("journal", "", 9),
        ("journal", "", 2),
        ("journal", "t2", 9),
        ("attempts", "", 9),
        ("documents", "", 9),
    ]
    told = await store.read(lambda tx: [tx.owners(*each) for each in asked])

    assert told == [
        [("t1", True), ("t2", False), ("t3", True)],
        [("t1", True), ("t2", False)],
        [("t3", True)],
        [("t2", False)],
        [("t1", True), ("t3", True)],
    ]


async def test_rows_without_a_task_are_removed_alone(store: Store) -> None:
    await add(store, task("t1"))
    await store.run(lambda tx: [tx.add_chunks(name, [chunk(0)]) for name in ("t1", "t2")])

    await store.run(lambda tx: tx.delete_parts("journal", ["t2"]))

    assert await store.read(lambda tx: tx.owners("journal", "", 9)) == [("t1", True)]
    assert await store.read(lambda tx: (tx.has_task("t1"), tx.has_task("t2"))) == (True, False)


async def test_what_there_is_of_a_task_is_counted(store: Store) -> None:
    await add(store, task("t1", num_chunks=3), task("t2"), task("t3", num_chunks=2))
    await store.run(lambda tx: tx.add_chunks("t1", [chunk(0), chunk(2)]))
    await store.run(lambda tx: tx.add_chunks("t3", [chunk(0), chunk(1)]))

    parts = await store.read(lambda tx: tx.task_parts("", 9))

    assert parts == [
        TaskParts("t1", True, 3, 3, 2),
        TaskParts("t2", True, 0, 0, 0),
        TaskParts("t3", True, 2, 2, 2),
    ]
    assert await store.read(lambda tx: tx.task_parts("t1", 1)) == parts[1:2]


async def test_a_journal_is_as_long_as_it_has_no_gap_and_is_cut_there(store: Store) -> None:
    await add(store, task("t1", num_chunks=4))
    await store.run(lambda tx: tx.add_chunks("t1", [chunk(0, 1, 2), chunk(1), chunk(3)]))

    assert await store.read(lambda tx: tx.journal_length("t1", 4)) == (2, 3)
    assert await store.read(lambda tx: tx.journal_length("t1", 1)) == (1, 2)
    assert await store.run(lambda tx: tx.cut_journal("t1", 2)) == 1
    assert await store.run(lambda tx: tx.cut_journal("t1", 2)) == 0
    assert [c.seq for c in await store.read(lambda tx: tx.chunks("t1", 0, 9))] == [0, 1]


async def test_a_request_is_added_only_where_there_is_none(store: Store) -> None:
    await add(store, task("t1"), task("t2"))
    await store.run(lambda tx: tx.delete_parts("documents", ["t2"]))

    added = await store.run(lambda tx: [tx.add_lost_document(n) for n in ("t1", "t2", "t3", "t2")])

    assert added == [False, True, False, False]
    parts = await store.read(lambda tx: tx.task_parts("", 9))
    assert [(each.task_id, each.has_document) for each in parts] == [("t1", True), ("t2", True)]


async def test_leases_that_do_not_say_whose_they_are_are_found(store: Store) -> None:
    whole = leased("t1", leased_at=5.0)
    missing = [
        changed(whole, id=f"t{number}", **{field: None})
        for number, field in enumerate(("runner", "replica", "leased_at", "lease_expires_at"), 2)
    ]
    await add(store, whole, *missing, task("t9"))

    found = await store.read(lambda tx: tx.leased_to_nobody(9))

    assert sorted(found) == ids(missing)


async def test_flows_are_counted_by_their_tasks_whether_or_not_they_are_on_record(
    store: Store,
) -> None:
    await store.run(lambda tx: tx.put_flow(flow("idle")))
    await add(
        store,
        task("t1", settled_cost=5),
        task("t2", settled_cost=99),
        task("t3", tenant="bob", model="other"),
        leased("t4", tenant="cy", priority_class="batch"),
        task("t5", tenant="di", state=TaskState.PAUSED),
    )

    names = await store.read(lambda tx: tx.flow_names(FIRST, 9))
    batch, ann, idle, bob = names
    assert names == [
        (MODEL, "batch", "cy"),
        (MODEL, DEFAULT_CLASS, "ann"),
        (MODEL, DEFAULT_CLASS, "idle"),
        ("other", DEFAULT_CLASS, "bob"),
    ]
    assert await store.read(lambda tx: tx.flow_names(ann, 1)) == [idle]
    assert await store.read(lambda tx: tx.leased_by_flow()) == {batch: 1}
    assert await store.read(lambda tx: tx.count_flow(ann, 7)) == FlowCount(2, 20, 7)
    assert await store.read(lambda tx: tx.count_flow(bob, 0)) == FlowCount(1, 25, 0)
    assert await store.read(lambda tx: tx.count_flow(idle, 0)) == FlowCount(0, 0, 0)


async def test_pauses_that_end_after_a_moment_come_latest_first(store: Store) -> None:
    paused = [
        task(f"t{number}", state=TaskState.DELAYED, not_before=at)
        for number, at in enumerate((20.0, 30.0, 40.0))
    ]
    await add(store, *paused, task("t9"))

    assert ids(await store.read(lambda tx: tx.due_after(20.0, 9))) == ["t2", "t1"]
    assert ids(await store.read(lambda tx: tx.due_after(20.0, 1))) == ["t2"]


async def test_a_store_has_the_clock_of_its_machine_or_tells_its_own(store: Store) -> None:
    told = await store.now()

    assert (told is not None) == store.is_shared
    if told is not None:
        assert told == pytest.approx(time.time(), abs=5)
