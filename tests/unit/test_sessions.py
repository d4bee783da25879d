from __future__ import annotations

from typing import Any

import pytest

from scheduler.cluster_view import NodeState, NodeView, ReplicaView
from scheduler.dispatcher.sessions import LeaseKey, Room, Sessions, Slot


def replica(name: str = "demo__r0", **changes: Any) -> ReplicaView:
    values: dict[str, Any] = {"model": "demo", "state": "ready", "capacity": 4, "in_flight": 0}
    return ReplicaView(name, **{**values, **changes})


def connect(
    sessions: Sessions,
    runner: str = "one",
    *replicas: ReplicaView,
    connection: str = "1",
    leases: dict[LeaseKey, str] | None = None,
) -> None:
    view = NodeView(f"node of {runner}", runner, True, 0, replicas or (replica(),))
    sessions.opened(view, connection, leases or {})


def take(sessions: Sessions, slot: Slot | None, task_id: str) -> LeaseKey:
    assert slot is not None
    lease = LeaseKey(task_id, 1)
    assert sessions.leased(slot, lease)
    return lease


@pytest.fixture
def sessions() -> Sessions:
    return Sessions()


def test_what_an_engine_tells_of_itself_is_shown_and_wakes_nobody(sessions: Sessions) -> None:
    connect(sessions)

    changed = sessions.reported("one", [replica(engine={"epoch": 2})], NodeState(), 0.0)

    assert changed == set()
    assert sessions.nodes()[0].replicas[0].engine == {"epoch": 2}


def test_there_is_no_slot_without_a_runner(sessions: Sessions) -> None:
    assert sessions.next_slot("demo") is None


def test_a_ready_replica_has_room_up_to_its_capacity(sessions: Sessions) -> None:
    connect(sessions)

    assert sessions.next_slot("demo") == Slot("one", "1", "demo__r0", 4)


def test_there_is_no_slot_for_another_model(sessions: Sessions) -> None:
    connect(sessions)

    assert sessions.next_slot("other") is None


@pytest.mark.parametrize("state", ["unknown", "starting", "draining", "failed"])
def test_a_replica_that_is_not_ready_gets_nothing(sessions: Sessions, state: str) -> None:
    connect(sessions, "one", replica(state=state))

    assert sessions.next_slot("demo") is None


def test_each_lease_takes_a_place(sessions: Sessions) -> None:
    connect(sessions, "one", replica(capacity=2))
    for task_id in "ab":
        take(sessions, sessions.next_slot("demo"), task_id)

    assert sessions.next_slot("demo") is None


def test_a_lease_that_ended_frees_its_place(sessions: Sessions) -> None:
    connect(sessions, "one", replica(capacity=1))
    lease = take(sessions, sessions.next_slot("demo"), "a")

    sessions.ended("one", lease)

    assert sessions.next_slot("demo") is not None


def test_ending_a_lease_twice_frees_one_place(sessions: Sessions) -> None:
    connect(sessions, "one", replica(capacity=2))
    lease = take(sessions, sessions.next_slot("demo"), "a")
    take(sessions, sessions.next_slot("demo"), "b")

    sessions.ended("one", lease)
    sessions.ended("one", lease)

    assert sessions.next_slot("demo").limit == 1


def test_the_least_loaded_replica_is_next(sessions: Sessions) -> None:
    connect(sessions, "one", replica("demo__r0"), replica("demo__r1"))
    take(sessions, sessions.next_slot("demo"), "a")

    assert sessions.next_slot("demo").replica == "demo__r1"


def test_load_is_measured_against_capacity(sessions: Sessions) -> None:
    connect(sessions, "one", replica("demo__r0", capacity=2), replica("demo__r1", capacity=8))
    for task_id in "abc":
        take(sessions, sessions.next_slot("demo"), task_id)

    counts = {r.name: r.in_flight for r in sessions.nodes()[0].replicas}
    assert counts == {"demo__r0": 1, "demo__r1": 2}


def test_a_replica_takes_no_more_than_brings_it_past_the_next(sessions: Sessions) -> None:
    connect(sessions, "one", replica("demo__r0"), replica("demo__r1"))

    assert sessions.next_slot("demo").limit == 1


def test_two_runners_share_the_work(sessions: Sessions) -> None:
    connect(sessions, "one", replica(capacity=2))
    connect(sessions, "two", replica(capacity=2))
    for task_id in "abcd":
        take(sessions, sessions.next_slot("demo"), task_id)

    assert [node.replicas[0].in_flight for node in sessions.nodes()] == [2, 2]


def test_a_lost_runner_gets_nothing(sessions: Sessions) -> None:
    connect(sessions)

    sessions.closed("one", "1", now=5.0)

    assert sessions.next_slot("demo") is None
    assert [node.connected for node in sessions.nodes()] == [False]


def test_a_slot_of_a_stream_that_broke_meanwhile_is_refused(sessions: Sessions) -> None:
    connect(sessions)
    slot = sessions.next_slot("demo")
    sessions.closed("one", "1", now=5.0)

    assert slot is not None
    assert not sessions.leased(slot, LeaseKey("a", 1))


def test_a_slot_of_an_earlier_stream_is_refused(sessions: Sessions) -> None:
    connect(sessions, connection="1")
    slot = sessions.next_slot("demo")
    connect(sessions, connection="2")

    assert slot is not None
    assert not sessions.leased(slot, LeaseKey("a", 1))


def test_the_end_of_an_earlier_stream_does_not_end_the_newer(sessions: Sessions) -> None:
    connect(sessions, connection="1")
    connect(sessions, connection="2")

    sessions.closed("one", "1", now=5.0)

    assert sessions.next_slot("demo") is not None


def test_leases_kept_over_a_hello_take_their_places(sessions: Sessions) -> None:
    connect(sessions, "one", replica(capacity=2), leases={LeaseKey("a", 1): "demo__r0"})

    assert sessions.next_slot("demo").limit == 1


def test_a_runner_that_stays_away_is_forgotten(sessions: Sessions) -> None:
    connect(sessions)
    sessions.closed("one", "1", now=5.0)

    assert sessions.forget_lost(4.9) == []
    assert sessions.forget_lost(5.0) == ["one"]
    assert sessions.nodes() == []


def test_a_report_names_the_models_that_changed(sessions: Sessions) -> None:
    connect(sessions, "one", replica(state="starting"), replica("other__r0", model="other"))

    changed = sessions.reported(
        "one", [replica(), replica("other__r0", model="other")], NodeState(), 0.0
    )

    assert changed == {"demo"}


def test_a_report_that_only_counts_differently_changes_nothing(sessions: Sessions) -> None:
    connect(sessions)

    assert sessions.reported("one", [replica(in_flight=3)], NodeState(), 0.0) == set()


def test_a_replica_that_is_gone_changes_its_model(sessions: Sessions) -> None:
    connect(sessions)

    assert sessions.reported("one", [], NodeState(), 0.0) == {"demo"}
    assert sessions.next_slot("demo") is None


def test_nodes_show_what_was_leased_and_not_what_is_reported(sessions: Sessions) -> None:
    connect(sessions, "one", replica(in_flight=3))
    take(sessions, sessions.next_slot("demo"), "a")

    assert sessions.nodes()[0].replicas[0].in_flight == 1


@pytest.mark.parametrize("wanted", [{}, {"demo__r0": (1,)}])
def test_a_replica_that_is_to_go_gets_nothing(
    sessions: Sessions, wanted: dict[str, tuple[int, ...]]
) -> None:
    connect(sessions)
    slot = sessions.next_slot("demo")
    assert slot is not None

    sessions.want("one", wanted)

    assert sessions.next_slot("demo") is None
    assert not sessions.leased(slot, LeaseKey("a", 1))


def test_what_is_to_go_stays_so_over_a_hello(sessions: Sessions) -> None:
    connect(sessions)
    sessions.want("one", {})

    connect(sessions, connection="2")

    assert sessions.next_slot("demo") is None


def test_a_slot_of_a_replica_that_vanished_meanwhile_is_refused(sessions: Sessions) -> None:
    connect(sessions)
    slot = sessions.next_slot("demo")
    assert slot is not None

    sessions.reported("one", [], NodeState(), 0.0)

    assert not sessions.leased(slot, LeaseKey("a", 1))


def test_a_runner_s_clock_is_judged_by_its_swiftest_heartbeat(sessions: Sessions) -> None:
    connect(sessions)
    assert sessions.nodes()[0].clock_skew_s is None

    for ahead_s in (-0.4, -0.02, -3.0):
        sessions.told_the_time("one", ahead_s)

    assert sessions.nodes()[0].clock_skew_s == -0.02


def test_a_clock_that_was_put_right_is_right_after_a_few_heartbeats(sessions: Sessions) -> None:
    connect(sessions)

    for ahead_s in (60.0, 60.0, *[0.0] * 5):
        sessions.told_the_time("one", ahead_s)

    assert sessions.nodes()[0].clock_skew_s == 0.0


def test_a_task_is_about_to_end_once(sessions: Sessions) -> None:
    connect(sessions)
    lease = take(sessions, sessions.next_slot("demo"), "a")

    for left in (8, 7, 6, 5, 4, 3):
        assert not sessions.progressed("one", lease, left, now=0.02 * (8 - left))

    assert sessions.progressed("one", lease, 2, now=0.12)
    assert not sessions.progressed("one", lease, 1, now=0.14)
    assert sessions.room("demo", now=0.16) == Room(free=3, capacity=4, ending=1)


def test_progress_of_a_lease_that_is_over_is_no_end_to_come(sessions: Sessions) -> None:
    connect(sessions)
    lease = take(sessions, sessions.next_slot("demo"), "a")
    sessions.ended("one", lease)

    assert not sessions.progressed("one", lease, 0, now=1.0)
    assert not sessions.progressed("two", lease, 0, now=1.0)
    assert sessions.room("demo", now=1.0) == Room(free=4, capacity=4)


def test_what_ends_on_a_replica_that_takes_nothing_makes_no_room(sessions: Sessions) -> None:
    connect(sessions)
    lease = take(sessions, sessions.next_slot("demo"), "a")
    sessions.progressed("one", lease, 0, now=1.0)

    sessions.reported("one", [replica(state="draining")], NodeState(), 0.5)

    assert sessions.room("demo", now=1.0) == Room(free=0, capacity=0)
