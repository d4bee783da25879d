"""What every store promises of tasks, their leases, their output and the bulks they belong to."""

from __future__ import annotations

from typing import Any

import pytest

from handlers.wire import TokenLogprob
from scheduler.bulk import Bulk
from scheduler.flow import DEFAULT_CLASS
from scheduler.records import changed
from scheduler.stores.base import Store, Transaction
from scheduler.task import Attempt, JournalChunk, Task, TaskError, TaskState
from scheduler.testing.tasks import MODEL, chunk
from tests.contracts.store_subjects import add, everything, ids, leased, task

# -- tasks


async def test_every_field_of_a_task_survives(store: Store) -> None:
    full = task(
        state=TaskState.FAILED,
        priority=-3,
        idempotency_key="k",
        deadline_at=77.25,
        priority_class="batch",
        num_moves=6,
        num_lost=5,
        leased_at=10.5,
        num_tokens_before=3,
        not_before=14.0,
        is_dead=True,
        queued_at=10.25,
        charged_class_time=2**60,
        cost_factor_permille=250,
        bulk_id="b1",
        bulk_index=7,
        charged_cost=9,
        settled_cost=8,
        charged_virtual_time=-(2**60),
        attempt=2,
        fence=3,
        num_chunks=4,
        num_tokens=5,
        first_claimed_at=11.0,
        first_chunk_at=12.0,
        finished_at=13.0,
        result={"text": "ü", "n": 1},
        error=TaskError(422, "too long", "prompt"),
    )

    await add(store, full)

    assert await store.read(lambda tx: tx.task("t1")) == full
    assert await store.read(lambda tx: tx.task_by_key("ann", "k")) == full
    assert await store.read(lambda tx: tx.task_by_key("bob", "k")) is None


async def test_put_writes_all_that_may_change(store: Store) -> None:
    await add(store, task())
    moved = changed(leased("t1"), attempt=1, num_chunks=2, num_tokens=3, charged_cost=4)

    await store.run(lambda tx: tx.put_task(moved))

    assert await store.read(lambda tx: tx.task("t1")) == moved


async def test_tasks_are_listed_newest_first_by_what_was_asked(store: Store) -> None:
    others = [task("t4", tenant="bob"), task("t5", model="other"), leased("t6")]
    await add(store, task("t1"), task("t2"), task("t3"), *others)

    async def listed(**wanted: Any) -> list[str]:
        blank = {"tenant": None, "model": None, "state": None, "limit": 10, "before": None}
        return await store.read(lambda tx: ids(tx.tasks(**{**blank, **wanted})))

    assert await listed() == ["t6", "t5", "t4", "t3", "t2", "t1"]
    assert await listed(limit=2, before="t5") == ["t4", "t3"]
    assert await listed(tenant="bob") == ["t4"]
    assert await listed(model="other") == ["t5"]
    assert await listed(state=TaskState.LEASED) == ["t6"]
    assert await listed(tenant="ann", model=MODEL, state=TaskState.QUEUED, before="t3") == [
        "t2",
        "t1",
    ]


async def test_the_head_of_a_flow_follows_priority_deadline_and_arrival(store: Store) -> None:
    in_order = [
        task("t9", priority=2),
        task("t8", priority=1, deadline_at=5.0),
        task("t7", priority=1, deadline_at=6.0),
        task("t1", priority=1),
        task("t2", priority=1),
        task("t0", priority=0, deadline_at=1.0),
    ]
    await add(store, *reversed(in_order), leased("t00", priority=9))

    def take_all(tx: Transaction) -> list[str]:
        taken = []
        while (head := tx.head(MODEL, DEFAULT_CLASS, "ann")) is not None:
            taken.append(head.id)
            tx.put_task(changed(head, state=TaskState.CANCELLED))
        return taken

    assert await store.run(take_all) == ids(in_order)


async def test_what_goes_before_a_task_is_counted_up_to_a_limit(store: Store) -> None:
    in_order = [
        task("t9", priority=2, estimated_cost=7),
        task("t8", deadline_at=5.0, settled_cost=5),
        task("t1"),
        task("t2"),
        task("t3", tenant="bob"),
    ]
    await add(store, *in_order, leased("t0"))

    async def ahead(which: Task, limit: int = 100) -> tuple[int, int]:
        return await store.read(lambda tx: tx.ahead(which, limit))

    assert await ahead(in_order[3]) == (3, 7 + 20 + 25)
    assert await ahead(in_order[3], limit=1) == (1, 7)
    assert await ahead(in_order[1]) == (1, 7)
    assert await ahead(in_order[0]) == (0, 0)


async def test_delayed_tasks_are_due_when_their_pause_is_over(store: Store) -> None:
    late, early = (
        task(name, state=TaskState.DELAYED, not_before=at)
        for name, at in (("t1", 30.0), ("t2", 20.0))
    )
    await add(store, late, early, task("t3"))

    assert ids(await store.read(lambda tx: tx.due(30.0, 10))) == ["t2", "t1"]
    assert ids(await store.read(lambda tx: tx.due(29.0, 10))) == ["t2"]


async def test_finished_tasks_are_removed_with_all_that_belongs_to_them(store: Store) -> None:
    old = task("t1", state=TaskState.SUCCEEDED, finished_at=10.0, idempotency_key="k")
    new = task("t2", state=TaskState.FAILED, finished_at=20.0, is_dead=True)
    await add(store, old, new, task("t3"))
    await store.run(lambda tx: tx.add_chunks("t1", [chunk(0)]))
    await store.run(lambda tx: tx.add_attempt("t1", Attempt(1, 1, "r", "x", 1.0, 0, 2.0)))

    assert await store.run(lambda tx: tx.delete_finished(20.0, 10)) == 1

    assert await store.read(lambda tx: (tx.chunks("t1", 0, 9), tx.attempts("t1"))) == ([], [])
    assert await store.read(lambda tx: tx.task_by_key("ann", "k")) is None
    assert ids(await everything(store)) == ["t3", "t2"]
    assert ids(await store.read(lambda tx: tx.tasks(is_dead=True, limit=9))) == ["t2"]


# -- bulks


async def test_a_bulk_is_its_tasks_in_their_places(store: Store) -> None:
    bulk = Bulk("b1", "ann", MODEL, "batch", 5.0, "nightly", "k", 3)
    parts = [task(f"t{4 - place}", bulk_id="b1", bulk_index=place) for place in range(3)]
    parts[1] = changed(parts[1], state=TaskState.SUCCEEDED, finished_at=9.0)
    await store.run(lambda tx: tx.put_bulk(changed(bulk, num_inputs=0)))
    await store.run(lambda tx: tx.put_bulk(bulk))
    await add(store, *parts, task("t9"))

    assert await store.read(lambda tx: (tx.bulk("b1"), tx.bulk("b2"))) == (bulk, None)
    assert await store.read(lambda tx: tx.bulk_by_key("ann", "k")) == bulk
    assert await store.read(lambda tx: tx.bulks(tenant="bob", limit=9, before=None)) == []
    counts = await store.read(lambda tx: tx.bulk_counts("b1"))
    assert counts == {TaskState.QUEUED: 2, TaskState.SUCCEEDED: 1}
    assert ids(await store.read(lambda tx: tx.bulk_tasks("b1", 1, 9))) == ["t3", "t2"]


async def test_what_a_bulk_waits_for_is_found_and_bulks_without_tasks_are_removed(
    store: Store,
) -> None:
    left = Bulk("b1", "ann", MODEL, "batch", 5.0)
    cancelled = changed(left, id="b2", closed_at=6.0, cancelled_at=6.0)
    done = changed(left, id="b3", closed_at=6.0)
    for each in (left, cancelled, done, changed(cancelled, id="b4")):
        await store.run(lambda tx, each=each: tx.put_bulk(each))
    states = [TaskState.QUEUED, TaskState.LEASED, TaskState.PAUSED, TaskState.CANCELLED]
    for n, state in enumerate(states):
        await add(store, task(f"t{n}", bulk_id="b2", bulk_index=n, state=state))
    await add(store, task("t9", bulk_id="b4", bulk_index=0, state=TaskState.FAILED))

    unfinished = await store.read(lambda tx: tx.bulk_unfinished("b2", 9))
    assert sorted(ids(unfinished)) == ["t0", "t1", "t2"]
    assert len(await store.read(lambda tx: tx.bulk_unfinished("b2", 2))) == 2
    assert await store.read(lambda tx: tx.bulks_left_open(5.0, 9)) == []
    assert await store.read(lambda tx: tx.bulks_left_open(5.5, 9)) == [left]
    assert await store.read(lambda tx: tx.bulks_to_cancel(9)) == [cancelled]
    assert await store.run(lambda tx: tx.delete_bulks(6.0, 9)) == 0
    assert await store.run(lambda tx: tx.delete_bulks(7.0, 9)) == 1
    assert await store.read(lambda tx: tx.bulk("b3")) is None


# -- leases and deadlines


async def test_a_lease_is_extended_for_its_holder_only(store: Store) -> None:
    await add(store, leased("t1"), task("t2", fence=1, runner="r1"))

    def extend(tx: Transaction) -> list[bool]:
        asked = [("t1", 1, "r1"), ("t1", 2, "r1"), ("t1", 1, "r2"), ("t2", 1, "r1"), ("no", 1, "r")]
        return [tx.extend_lease(*lease, 500.0) for lease in asked]

    assert await store.run(extend) == [True, False, False, False, False]
    found = await store.read(lambda tx: tx.task("t1"))
    assert found is not None
    assert found.lease_expires_at == 500.0


async def test_renewing_all_leases_has_all_end_at_once(store: Store) -> None:
    await add(store, leased("t1", expires_at=100.0), leased("t2", expires_at=900.0), task("t3"))

    assert await store.run(lambda tx: tx.renew_leases(500.0)) == 2
    left = await store.read(lambda tx: tx.expired_leases(1000.0, 10))
    assert [(t.id, t.lease_expires_at) for t in left] == [("t1", 500.0), ("t2", 500.0)]


async def test_expired_leases_come_earliest_first(store: Store) -> None:
    await add(
        store,
        leased("t1", expires_at=30.0),
        leased("t2", expires_at=20.0),
        leased("t3"),
        task("t4"),
    )

    assert ids(await store.read(lambda tx: tx.expired_leases(30.0, 10))) == ["t2", "t1"]
    assert ids(await store.read(lambda tx: tx.expired_leases(30.0, 1))) == ["t2"]


async def test_passed_deadlines_are_those_of_tasks_still_open(store: Store) -> None:
    await add(
        store,
        task("t1", deadline_at=30.0),
        leased("t2", deadline_at=20.0),
        task("t3", deadline_at=10.0, state=TaskState.SUCCEEDED, finished_at=9.0),
        task("t4", deadline_at=40.0),
        task("t5"),
    )

    assert ids(await store.read(lambda tx: tx.past_deadline(30.0, 10))) == ["t2", "t1"]
    assert ids(await store.read(lambda tx: tx.past_deadline(30.0, 1))) == ["t2"]


async def test_leases_are_found_by_runner(store: Store) -> None:
    await add(store, leased("t1"), leased("t2", runner="r2"), leased("t3"))

    assert ids(await store.read(lambda tx: tx.leases("r1"))) == ["t1", "t3"]


# -- attempts and output


async def test_attempts_are_kept_in_order(store: Store) -> None:
    first = Attempt(1, 1, "r1", "demo__r0", 10.0, 0, 20.0, "lost", "worker died")
    second = Attempt(2, 2, "r2", "demo__r1", 30.0, 4, 40.0, "parked", "to make room")

    def command(tx: Transaction) -> None:
        tx.add_attempt("t1", second)
        tx.add_attempt("t1", first)

    await store.run(command)

    assert await store.read(lambda tx: tx.attempts("t1")) == [first, second]
    assert await store.read(lambda tx: tx.attempts("t2")) == []


async def test_the_journal_is_read_from_a_cursor(store: Store) -> None:
    written = [chunk(0, 1, 2), chunk(1, 3), chunk(2, 4, 5)]
    await store.run(lambda tx: tx.add_chunks("t1", written))

    assert await store.read(lambda tx: tx.chunks("t1", 1, 10)) == written[1:]
    assert await store.read(lambda tx: tx.chunks("t1", 0, 2)) == written[:2]
    assert await store.read(lambda tx: tx.token_ids("t1")) == ((1, 2, 3, 4, 5),)
    assert await store.read(lambda tx: tx.chunks("t2", 0, 10)) == []


async def test_text_may_hold_any_character(store: Store) -> None:
    odd = JournalChunk(0, (1,), "\x00\x10@\x10P\x10\x00 % ? $1 \U0001f600 \x7f\r\n")
    await store.run(lambda tx: tx.add_chunks("t1", [odd]))

    assert await store.read(lambda tx: tx.chunks("t1", 0, 10)) == [odd]


async def test_a_chunk_cannot_be_written_twice(store: Store) -> None:
    await store.run(lambda tx: tx.add_chunks("t1", [chunk(0)]))

    with pytest.raises(Exception, match=r"UNIQUE|duplicate"):
        await store.run(lambda tx: tx.add_chunks("t1", [chunk(0, 9)]))
    assert await store.read(lambda tx: tx.token_ids("t1")) == ((100,),)


async def test_the_journal_keeps_answers_apart_and_their_log_probabilities(store: Store) -> None:
    likely = (TokenLogprob(-0.25, ((4, -0.25), (9, -3.5))),)
    written = [JournalChunk(0, (4,), "a", 2, likely), chunk(1, 1), JournalChunk(2, (5,), "b", 2)]
    await store.run(lambda tx: tx.add_chunks("t1", written))

    assert await store.read(lambda tx: tx.chunks("t1", 0, 10)) == written
    assert await store.read(lambda tx: tx.token_ids("t1")) == ((1,), (), (4, 5))


async def test_text_alone_is_no_answer_to_go_on_from(store: Store) -> None:
    await store.run(lambda tx: tx.add_chunks("t1", [JournalChunk(0, (), "tail", 1)]))

    assert await store.read(lambda tx: tx.token_ids("t1")) == ()


async def test_what_a_lost_attempt_is_worth_is_kept(store: Store) -> None:
    written = task("t1", resume="none")
    await store.run(lambda tx: tx.add_task(written))

    assert await store.read(lambda tx: tx.task("t1")) == written
