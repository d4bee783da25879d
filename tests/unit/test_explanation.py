"""Why a task waits and until when, and the story of its attempts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from scheduler.cluster_view import ReplicaView
from scheduler.explanation import Facts, explain_other, explain_waiting
from scheduler.flow import CLASS_WEIGHTS, Ahead, Outlook, Tenant
from scheduler.records import changed
from scheduler.scaling import WarmUp
from scheduler.service_rate import Rate
from scheduler.task import Attempt, Task, TaskState

NOW = 1000.0
#: Ten weighted tokens a second in each slot.
RATE = Rate(10.0, 60.0, True)
NOTHING = Outlook(Ahead(), Ahead(), {})


def a_task(task_id: str = "t", tenant: str = "ann", **changes: Any) -> Task:
    blank = Task(task_id, tenant, "demo", {}, TaskState.QUEUED, 0, None, None, 100, 0, 2)
    return changed(blank, accepted_at=NOW - 30, queued_at=NOW - 30, **changes)


def running(*left: int, tenant: str = "bob") -> list[Task]:
    """Tasks that have so much left of what they were estimated to cost."""
    state = TaskState.LEASED
    return [
        a_task(f"r{n}", tenant, estimated_cost=each, state=state) for n, each in enumerate(left)
    ]


def replicas(capacity: int = 2, state: str = "ready", detail: str = "") -> list[ReplicaView]:
    return [ReplicaView("demo__r0", "demo", state, capacity, 0, (), detail)]


def facts(**changes: Any) -> Facts:
    given: dict[str, Any] = {
        "task": a_task(),
        "now": NOW,
        "outlook": NOTHING,
        "tenant": Tenant("ann"),
        "num_in_flight": 0,
        "running": running(100, 60),
        "replicas": replicas(),
        "num_desired": 1,
        "rate": RATE,
        "class_weights": CLASS_WEIGHTS,
    }
    return Facts(**{**given, **changes})


def codes(given: Facts) -> list[str]:
    return [shortage.code for shortage in explain_waiting(given, []).short]


def starts_in(given: Facts) -> float | None:
    at = explain_waiting(given, []).estimated_start_at
    return None if at is None else at - NOW


def own(count: int, cost: int) -> Outlook:
    return Outlook(Ahead(count, cost, 1), Ahead(), {})


# -- until when


def starting(**changes: Any) -> Facts:
    start = WarmUp(30.0, 4, "cpu", NOW - 10, num_slots=2)
    return facts(replicas=replicas(state="starting"), running=[], warm_up=start, **changes)


def test_the_first_task_of_a_replica_that_starts_is_told_when_that_is_ready() -> None:
    told = explain_waiting(starting(), [])

    assert starts_in(starting()) == pytest.approx(20.0)
    assert "nine of ten starts took 30 s at most (of 4 on cpu)" in told.message
    assert told.basis is not None
    assert (told.basis.start_s, told.basis.num_starts, told.basis.start_kind) == (30.0, 4, "cpu")


def test_those_behind_the_slots_of_a_replica_that_starts_wait_for_these_as_well() -> None:
    assert starts_in(starting(outlook=own(1, 100))) == pytest.approx(20.0)
    assert starts_in(starting(outlook=own(2, 200))) == pytest.approx(30.0)
    assert starts_in(starting(outlook=own(2, 200), rate=None)) is None


def test_a_replica_that_takes_longer_than_others_did_may_be_ready_any_moment() -> None:
    late = WarmUp(30.0, 4, "cpu", NOW - 100, num_slots=2)

    assert starts_in(facts(replicas=[], running=[], warm_up=late)) == 0.0


def test_nobody_can_tell_when_no_start_was_measured() -> None:
    assert starts_in(facts(replicas=[], running=[], warm_up=WarmUp(num_slots=2))) is None


def test_the_next_task_starts_when_the_first_slot_is_free() -> None:
    assert starts_in(facts()) == pytest.approx(6.0)


def test_a_free_slot_is_taken_at_once() -> None:
    assert starts_in(facts(running=running(100), rate=None)) == 0.0


def test_tasks_ahead_take_slots_first() -> None:
    assert starts_in(facts(outlook=own(1, 100))) == pytest.approx(10.0)
    assert starts_in(facts(outlook=own(2, 200))) == pytest.approx(16.0)
    assert starts_in(facts(outlook=own(3, 300))) == pytest.approx(20.0)
    assert starts_in(facts(outlook=own(2000, 200_000))) == pytest.approx(10_000, rel=0.01)


def test_all_that_goes_first_counts_wherever_it_waits() -> None:
    outlook = Outlook(Ahead(1, 100, 1), Ahead(1, 100, 1), {"interactive": Ahead(1, 100, 1)})

    assert starts_in(facts(outlook=outlook)) == starts_in(facts(outlook=own(3, 300)))


def test_estimates_count_for_what_they_have_been_worth() -> None:
    rate = replace(RATE, used_ratio=0.5)

    assert starts_in(facts(outlook=own(2, 200), rate=rate)) == pytest.approx(8.0)


def test_a_delayed_task_does_not_start_before_its_pause_is_over() -> None:
    task = a_task(state=TaskState.DELAYED, not_before=NOW + 40, num_lost=2)

    assert starts_in(facts(task=task)) == 40.0
    assert codes(facts(task=task))[0] == "delayed"


def test_a_tenant_at_its_quota_waits_for_its_own() -> None:
    tenant = Tenant("ann", max_in_flight=1)
    mine = running(300, tenant="ann")
    given = facts(tenant=tenant, num_in_flight=1, running=mine)

    assert starts_in(given) == pytest.approx(30.0)
    assert codes(given) == ["tenant_in_flight"]
    assert "1 tasks in flight of 1" in explain_waiting(given, []).message


def test_slots_that_are_kept_for_others_are_not_free() -> None:
    given = facts(running=[*running(100, 60, tenant="ann"), *running(80)], replicas=replicas(4))

    assert starts_in(given) == pytest.approx(6.0)
    assert "kept for tenants" in explain_waiting(given, []).message


@pytest.mark.parametrize(
    ("changes", "code", "why"),
    [
        ({"num_desired": 0}, "no_replica_desired", "no replica is ready"),
        ({"replicas": []}, "no_replica_ready", "no replica is ready"),
        (
            {"replicas": replicas(state="failed", detail="no such file")},
            "no_replica_ready",
            "no replica is ready",
        ),
        ({"task": a_task(state=TaskState.PAUSED)}, "paused", "it is paused"),
        ({"rate": None}, "slots_busy", "how fast the model is served has not been measured yet"),
    ],
)
def test_what_nobody_can_tell_is_said_with_the_reason(
    changes: dict[str, Any], code: str, why: str
) -> None:
    told = explain_waiting(facts(**changes), [])

    assert (told.estimated_start_at, told.why_unknown) == (None, why)
    assert told.short[0].code == code
    assert told.message == told.short[0].message


def test_why_a_replica_is_not_ready_is_told() -> None:
    given = facts(replicas=replicas(state="failed", detail="no such file"))

    assert "demo__r0 is failed: no such file" in explain_waiting(given, []).message


# -- what is short, and the position


def test_a_task_that_goes_next_into_a_free_slot_is_short_of_nothing() -> None:
    told = explain_waiting(facts(running=[]), [])

    assert told.short == ()
    assert told.message == "it goes next, and a slot is free"


def test_who_goes_first_is_told_by_where_they_wait() -> None:
    outlook = Outlook(Ahead(2, 200, 1), Ahead(5, 500, 3), {"interactive": Ahead(7, 70, 2)})
    told = explain_waiting(facts(outlook=outlook), [])

    assert told.position == 3
    assert [shortage.code for shortage in told.short] == [
        "slots_busy", "own_tasks", "other_tenants", "other_classes",
    ]  # fmt: skip
    assert told.short[0].message == "2 of 2 slots are busy"
    assert told.short[2].message == "5 tasks of 3 other tenants go first"
    assert "a class of more weight" in told.short[3].message
    assert told.basis is not None
    assert (told.basis.num_tasks_ahead, told.basis.cost_ahead) == (14, 770)
    assert told.basis.cost_per_s == 20.0


# -- the story


def attempt(number: int, start: float, end: float | None, before: int, outcome: str) -> Attempt:
    return Attempt(number, number, "r1", "demo__r0", start, before, end, outcome, "why")


def test_the_story_tells_waits_durations_and_tokens() -> None:
    task = a_task(state=TaskState.SUCCEEDED, num_tokens=30, finished_at=1010.0)
    told = explain_other(
        task,
        [attempt(1, 975.0, 980.0, 0, "lost"), attempt(2, 990.0, 1010.0, 12, "succeeded")],
        2000.0,
    )

    first, second = told.attempts
    assert (first.waited_s, first.duration_s, first.num_tokens) == (5.0, 5.0, 12)
    assert (second.waited_s, second.duration_s, second.num_tokens) == (10.0, 20.0, 18)
    assert (told.waited_s, told.worked_s) == (15.0, 25.0)
    assert told.message == "it succeeded after 15.0 s of waiting and 25.0 s of work in 2 attempts"


def test_a_running_attempt_lasts_until_now() -> None:
    task = a_task(state=TaskState.LEASED, num_tokens=4)
    told = explain_other(task, [attempt(1, 980.0, None, 0, "running")], NOW)

    assert told.attempts[0].duration_s == 20.0
    assert told.attempts[0].num_tokens == 4
    assert (told.waited_s, told.worked_s) == (10.0, 20.0)
    assert told.message.startswith("it is worked on")


def test_a_task_that_never_ran_has_only_waited() -> None:
    task = a_task(state=TaskState.CANCELLED, finished_at=NOW)
    told = explain_other(task, [], NOW + 500)

    assert (told.waited_s, told.worked_s, told.attempts) == (30.0, 0.0, ())
