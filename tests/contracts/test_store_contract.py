"""What every store promises: one suite over every file of scheduler/stores."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pkgutil import iter_modules
from typing import Any

import pytest
import pytest_asyncio

import scheduler.stores
from handlers.wire import TokenLogprob
from scheduler.bulk import Bulk
from scheduler.errors import StoreUnavailable
from scheduler.flow import CLASS_WEIGHTS, DEFAULT_CLASS, Ahead, Band, Flow, Tenant
from scheduler.keys import Key, Role, hashed
from scheduler.records import changed
from scheduler.stores import postgres, sqlite
from scheduler.stores.base import Store, Transaction
from scheduler.task import Attempt, JournalChunk, Task, TaskError, TaskState
from scheduler.testing.tasks import MODEL, chunk

#: How to open each kind of store, empty.
OPENERS: dict[str, Callable[[pytest.FixtureRequest], Store]] = {
    "postgres": lambda request: postgres.Store(request.getfixturevalue("postgres_url")),
    "sqlite": lambda request: sqlite.Store(request.getfixturevalue("tmp_path") / "plait.db"),
    "sqlite in memory": lambda _: sqlite.Store(sqlite.MEMORY),
}


def test_every_store_is_under_this_contract() -> None:
    files = {m.name for m in iter_modules(scheduler.stores.__path__) if m.name[0] != "_"}

    assert files - {"base"} == {name.split()[0] for name in OPENERS}


@pytest_asyncio.fixture(params=sorted(OPENERS))
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    opened = OPENERS[request.param](request)
    yield opened
    await opened.close()


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


# -- commands


async def test_what_a_command_wrote_is_read_by_a_later_query(store: Store) -> None:
    await add(store, task())

    assert await store.read(lambda tx: tx.task("t1")) == task()


async def test_a_command_that_raises_has_had_no_effect(store: Store) -> None:
    def command(tx: Transaction) -> None:
        tx.add_task(task())
        raise LookupError("half way")

    with pytest.raises(LookupError, match="half way"):
        await store.run(command)
    assert await store.read(lambda tx: tx.task("t1")) is None


async def test_a_command_that_raises_leaves_its_neighbours_alone(store: Store) -> None:
    def bad(tx: Transaction) -> None:
        tx.add_task(task("bad"))
        raise LookupError

    commands = [add(store, task("t1")), store.run(bad), add(store, task("t2"))]
    answers = await asyncio.gather(*commands, return_exceptions=True)

    assert [type(answer) for answer in answers] == [type(None), LookupError, type(None)]
    assert ids(await everything(store)) == ["t2", "t1"]


async def test_commands_run_one_after_the_other(store: Store) -> None:
    def increment(tx: Transaction) -> None:
        ann = tx.tenant("ann")
        tx.put_tenant(changed(ann, weight_permille=ann.weight_permille + 1))

    await asyncio.gather(*(store.run(increment) for _ in range(200)))

    assert (await store.read(lambda tx: tx.tenant("ann"))).weight_permille == 1200


async def test_commands_that_wait_together_are_committed_together(store: Store) -> None:
    is_running, may_go_on = threading.Event(), threading.Event()

    def slow(tx: Transaction) -> None:
        is_running.set()
        assert may_go_on.wait(10)

    def add_one(tx: Transaction) -> None:
        ann = tx.tenant("ann")
        tx.put_tenant(changed(ann, weight_permille=ann.weight_permille + 1))

    first = asyncio.ensure_future(store.run(slow))
    await asyncio.to_thread(is_running.wait, 10)
    waiting = [asyncio.ensure_future(store.run(add_one)) for _ in range(200)]
    await asyncio.sleep(0)
    before = store.num_commits
    may_go_on.set()
    await asyncio.gather(first, *waiting)

    assert store.num_commits - before == 2
    assert (await store.read(lambda tx: tx.tenant("ann"))).weight_permille == 1200


async def test_a_caller_that_gives_up_does_not_disturb_the_next(store: Store) -> None:
    given_up = asyncio.ensure_future(add(store, task("t1")))
    await asyncio.sleep(0)
    given_up.cancel()

    await add(store, task("t2"))

    assert "t2" in ids(await everything(store))


async def test_a_closed_store_refuses(store: Store) -> None:
    await store.close()

    with pytest.raises(StoreUnavailable, match="closed"):
        await store.run(lambda tx: tx.depth())
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.read(lambda tx: tx.depth())


async def test_closing_finishes_what_was_asked_before(store: Store) -> None:
    asked = [asyncio.ensure_future(add(store, task(f"t{n}"))) for n in range(20)]
    await asyncio.sleep(0)

    await store.close()

    assert await asyncio.gather(*asked) == [None] * 20


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


# -- bulks and keys


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


async def test_keys_are_listed_by_tenant_and_found_by_id(store: Store) -> None:
    key = Key("k1", "ann", Role.OPERATOR, hashed("secret"), 5.0, "laptop")
    revoked = changed(key, id="k2", tenant="bob", revoked_at=7.0)
    for each in (key, changed(revoked, revoked_at=None), revoked):
        await store.run(lambda tx, each=each: tx.put_key(each))

    assert await store.read(lambda tx: tx.keys("ann")) == [key]
    assert await store.read(lambda tx: tx.keys(None)) == [key, revoked]
    found = await store.read(lambda tx: (tx.key("k1"), tx.key("k2"), tx.key("k3")))
    assert found == (key, revoked, None)
    assert [each is not None and each.opens_with("secret") for each in found] == [
        True,
        False,
        False,
    ]


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


async def test_extending_all_leases_shortens_none(store: Store) -> None:
    await add(store, leased("t1", expires_at=100.0), leased("t2", expires_at=900.0), task("t3"))

    assert await store.run(lambda tx: tx.extend_leases(500.0)) == 2
    left = await store.read(lambda tx: tx.expired_leases(1000.0, 10))
    assert [(t.id, t.lease_expires_at) for t in left] == [("t1", 500.0), ("t2", 900.0)]


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
        for flow in flows:
            tx.put_flow(flow)

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


async def test_what_was_accepted_before_is_counted_by_flow(store: Store) -> None:
    mine = task("t5")
    await add(
        store, mine, task("t1", tenant="bob"), task("t2", tenant="eve"), task("t3", tenant="bob")
    )

    assert await store.read(lambda tx: tx.queued_before(mine, 10)) == Ahead(3, 75, 2)
    some = await store.read(lambda tx: tx.queued_before(mine, 2))
    assert (some.num_tasks, some.is_at_least) == (2, True)


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


# -- operator's data


async def test_a_tenant_for_which_nothing_was_set_has_the_defaults(store: Store) -> None:
    ann = Tenant("ann", 3000, 10, 2, 600, ("standard", "batch"), 17.5, 99.0)
    await store.run(lambda tx: tx.put_tenant(ann))

    assert await store.read(lambda tx: (tx.tenant("ann"), tx.tenant("bob"))) == (ann, Tenant("bob"))
    assert await store.read(lambda tx: tx.tenants()) == [ann]


async def test_classes_have_their_weights_and_those_that_were_set(store: Store) -> None:
    await store.run(lambda tx: tx.put_class("batch", 500))
    await store.run(lambda tx: tx.put_class("nightly", 10))

    weights = await store.read(lambda tx: dict(tx.class_weights()))
    assert weights == {**CLASS_WEIGHTS, "batch": 500, "nightly": 10}
    assert await store.read(lambda tx: tx.class_weight("nightly")) == 10


async def test_a_cost_factor_holds_for_its_model_and_device_kind(store: Store) -> None:
    await store.run(lambda tx: tx.put_cost_factor(MODEL, "cpu", 250))

    def factors(tx: Transaction) -> list[int]:
        return [tx.cost_factor(*key) for key in ((MODEL, "cpu"), (MODEL, "gpu"), ("other", "cpu"))]

    assert await store.read(factors) == [250, 1000, 1000]
    assert await store.read(lambda tx: tx.cost_factors()) == {(MODEL, "cpu"): 250}


async def test_a_band_is_kept_by_model_and_class(store: Store) -> None:
    band = Band(MODEL, "batch", -7, 2, 9, "fcfs")
    await store.run(lambda tx: tx.put_band(Band(MODEL, "batch", 1, 1, 1)))
    await store.run(lambda tx: tx.put_band(band))

    assert await store.read(lambda tx: tx.band(MODEL, "batch")) == band
    assert await store.read(lambda tx: tx.band(MODEL, "standard")) == Band(MODEL, "standard")
    assert await store.read(lambda tx: list(tx.bands(MODEL))) == [band]


async def test_a_command_that_raises_takes_back_what_it_did_to_flows_and_bands(
    store: Store,
) -> None:
    before, band = flow("ann", virtual_time=1, num_queued=1), Band(MODEL, DEFAULT_CLASS, 5, 1)

    def write(tx: Transaction) -> None:
        tx.put_flow(before)
        tx.put_band(band)

    def fail(tx: Transaction) -> None:
        tx.put_flow(changed(before, virtual_time=9))
        tx.put_flow(flow("new", num_queued=3))
        tx.next_flow(MODEL, DEFAULT_CLASS)
        tx.put_band(changed(band, virtual_time=8))
        raise LookupError

    answers = await asyncio.gather(store.run(write), store.run(fail), return_exceptions=True)

    assert isinstance(answers[1], LookupError)
    assert await store.read(lambda tx: tx.flows(MODEL)) == [before]
    assert await store.run(lambda tx: tx.flow(MODEL, DEFAULT_CLASS, "ann")) == before
    assert await store.read(lambda tx: list(tx.bands(MODEL))) == [band]
    assert await store.run(lambda tx: tx.band(MODEL, DEFAULT_CLASS)) == band


async def test_a_held_flow_does_not_go_next(store: Store) -> None:
    held, free = flow("ann", num_queued=1, is_held=True), flow("bob", virtual_time=9, num_queued=1)

    def write(tx: Transaction) -> None:
        tx.put_flow(held)
        tx.put_flow(free)

    await store.run(write)

    assert await store.read(lambda tx: tx.next_flow(MODEL, DEFAULT_CLASS)) == free
    assert await store.read(lambda tx: tx.flows_of("ann")) == [held]


async def test_desired_replicas_are_those_that_were_set(store: Store) -> None:
    await store.run(lambda tx: tx.put_desired_replicas(MODEL, 2))
    await store.run(lambda tx: tx.put_desired_replicas(MODEL, 0))

    assert await store.read(lambda tx: tx.desired_replicas()) == {MODEL: 0}


async def everything(store: Store) -> list[Task]:
    return await store.read(
        lambda tx: tx.tasks(tenant=None, model=None, state=None, limit=100, before=None)
    )
