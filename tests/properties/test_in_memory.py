"""What is kept in memory of an order agrees with the order itself, however it changes."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from scheduler.flow import Flow
from scheduler.records import changed
from scheduler.stores._in_memory import KnownTasks, Queue, Turns, place_of
from scheduler.task import Task, TaskState

TENANTS = st.sampled_from([f"t{n}" for n in range(8)])
#: (tenant, virtual time, tasks queued, whether it is held)
CHANGES = st.tuples(TENANTS, st.integers(0, 9), st.integers(0, 2), st.booleans())
#: (id, whether it is queued)
MOVES = st.tuples(st.integers(0, 11), st.booleans())


def task(number: int, *, is_queued: bool = True) -> Task:
    state = TaskState.QUEUED if is_queued else TaskState.LEASED
    deadline_at = None if number % 3 else 100.0 - number
    return Task(f"{number:02}", "ann", "demo", {}, state, number % 4, None, deadline_at, 1, 0, 1)


def in_turn(flows: dict[str, Flow]) -> list[Flow]:
    active = [flow for flow in flows.values() if flow.is_active]
    return sorted(active, key=lambda flow: (flow.virtual_time, flow.tenant))


@given(st.lists(CHANGES, max_size=8), st.lists(CHANGES, max_size=40), st.integers(1, 4))
def test_whose_turn_it_is_is_never_said_wrongly(
    before: Sequence[tuple[str, int, int, bool]],
    changes: Sequence[tuple[str, int, int, bool]],
    page: int,
) -> None:
    flows = {f"t{n}": Flow("demo", "batch", f"t{n}") for n in range(8)}

    def read() -> Turns:
        first = in_turn(flows)[:page]
        return Turns(first, is_all=len(first) < page)

    def put(tenant: str, virtual_time: int, num_queued: int, is_held: bool) -> None:
        flow = flows[tenant]
        flows[tenant] = changed(
            flow, virtual_time=virtual_time, num_queued=num_queued, is_held=is_held
        )

    for change in before:
        put(*change)
    turns = read()
    for change in changes:
        put(*change)
        turns.put(flows[change[0]])
        found = turns.first(flows.__getitem__)
        if found is None and not turns.is_all:
            turns = read()
            found = turns.first(flows.__getitem__)
        assert found == next(iter(in_turn(flows)), None)


@given(st.lists(MOVES, max_size=12), st.lists(MOVES, max_size=40), st.integers(1, 5))
def test_the_head_of_a_queue_is_never_said_wrongly(
    before: Sequence[tuple[int, bool]], moves: Sequence[tuple[int, bool]], page: int
) -> None:
    queued = {number for number, is_queued in before if is_queued}

    def in_order() -> list[Task]:
        return sorted(map(task, queued), key=place_of)

    def read() -> Queue:
        places = [place_of(each) for each in in_order()[:page]]
        return Queue(places, is_all=len(places) < page)

    queue = read()
    for number, is_queued in moves:
        (queued.add if is_queued else queued.discard)(number)
        queue.put(task(number, is_queued=is_queued))
        if queue.first() is None and not queue.is_all:
            queue = read()
        assert queue.first() == next((each.id for each in in_order()), None)


def test_a_task_that_a_failed_command_wrote_is_not_known_any_more() -> None:
    known = KnownTasks()
    known.keep(task(1), 10)
    known.begin()
    known.keep(task(1, is_queued=False))
    known.written("01")

    known.undo()

    assert known.task("01") is None
    assert known.document("01") == {}


def test_after_others_may_have_written_only_documents_are_known() -> None:
    known = KnownTasks()
    known.keep(task(1), 10)

    known.doubt_all()

    assert known.task("01") is None
    assert known.document("01") == {}


def test_tasks_used_last_are_kept_and_the_others_forgotten() -> None:
    known = KnownTasks(max_bytes=3 * 3000)
    for number in range(4):
        known.keep(task(number), 900)
        known.task("00")

    assert [known.task(f"{n:02}") is not None for n in range(4)] == [True, False, True, True]


def test_a_document_too_large_is_not_kept() -> None:
    known = KnownTasks(max_bytes=1000)
    known.keep(task(1), 2000)

    assert known.task("01") is None
