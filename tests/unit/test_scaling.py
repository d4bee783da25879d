"""The number of replicas that work asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from handlers.scale_section import Scale
from scheduler.autoscaler.scaling import (
    STALE_AFTER_S,
    Decision,
    Memory,
    Seen,
    Starting,
    decide,
    started,
)
from scheduler.scaling import Action

RULE = Scale(max=8, target_wait_s=10.0, use_ratio=0.8)
#: What one replica does in a second.
SPEED = 100.0


def seen(now: float = 0.0, num_ready: int = 1, **changes: Any) -> Seen:
    values: dict[str, Any] = {
        "measured_at": now,
        "ready": ("cpu",) * num_ready,
        "speeds": {"cpu": SPEED},
        "num_slots": 4,
        "start_s": 20.0,
        "arriving": 0.0,
    }
    return Seen(now, **{**values, **changes})


def watched(
    look: Callable[[float, int], Seen],
    seconds: float,
    rule: Scale = RULE,
    memory: Memory | None = None,
) -> list[Decision]:
    """Decisions every five seconds; ``look`` is given the moment and how many are wanted."""
    memory, told = memory or Memory(1), []
    for tick in range(int(seconds / 5) + 1):
        decision, memory = decide(rule, look(5.0 * tick, memory.num_desired), memory)
        told.append(decision)
    return told


def test_work_that_keeps_coming_gets_replicas_to_carry_it() -> None:
    told = watched(
        lambda now, num: seen(now, num, num_running=8, arriving=310.0), 300, memory=Memory(3)
    )

    # 310 a second at 80 of each.
    assert told[-1].after == 4
    assert [d.reason for d in told if d.action is Action.UP] == ["steady"]


def test_a_queue_that_those_there_cannot_do_in_time_gets_more() -> None:
    work = {"num_queued": 60, "queued_cost": 6_000.0, "num_running": 4}

    told = watched(lambda now, _: seen(now, 1, **work), 15)

    (up,) = [d for d in told if d.action is Action.UP]
    # 3,000 of 6,000 are done by then, and three more do the rest in ten seconds.
    assert (up.after, up.reason, up.inputs["wait_s"]) == (4, "queue", 60.0)


def test_a_queue_that_is_done_before_another_replica_were_ready_gets_none() -> None:
    work = {"num_queued": 20, "queued_cost": 2_000.0, "num_running": 4}

    told = watched(lambda now, _: seen(now, 1, **work), 60)

    assert {d.after for d in told} == {1}


def test_replicas_that_are_starting_are_not_ordered_again() -> None:
    work = {"num_queued": 60, "queued_cost": 6_000.0, "num_running": 4}
    on_their_way = tuple(Starting("cpu", 5.0) for _ in range(5))

    told = watched(lambda now, _: seen(now, 1, starting=on_their_way, **work), 15, memory=Memory(6))

    assert {d.after for d in told} == {6}


def test_a_replica_that_never_becomes_ready_is_made_up_for() -> None:
    stuck = (Starting("cpu", 1_000.0),)

    told = watched(
        lambda now, _: seen(now, 1, starting=stuck, num_running=4, arriving=125.0),
        60,
        memory=Memory(2),
    )

    assert told[-1].after == 3
    assert told[-1].inputs["num_failed"] == 1


def test_tasks_are_counted_against_slots_until_a_speed_is_known() -> None:
    told = watched(lambda now, num: seen(now, num, speeds={}, num_running=4, num_queued=4), 60)

    assert told[-1].after == 3  # eight tasks, and 3.2 of the four slots of each


def test_from_none_one_is_started_at_once() -> None:
    rule = Scale(max=8, min=0)

    (told,) = watched(
        lambda now, _: seen(now, 0, num_queued=1, queued_cost=10.0), 0, rule, Memory(0)
    )

    assert (told.action, told.after, told.reason) == (Action.UP, 1, "from_zero")


def test_without_work_none_run_after_a_while() -> None:
    rule = Scale(max=8, min=0, idle_s=60.0)

    told = watched(seen, 70, rule)

    assert [d.after for d in told] == [1] * 12 + [0, 0, 0]
    assert told[12].reason == "idle"


def test_work_that_comes_and_goes_between_two_looks_keeps_a_replica() -> None:
    rule = Scale(max=8, min=0, idle_s=60.0)

    told = watched(lambda now, num: seen(now, num, was_busy=now % 50 == 0), 300, rule)

    assert {d.after for d in told} == {1}


def test_a_replica_that_took_long_to_start_is_kept_for_longer() -> None:
    rule = Scale(max=8, min=0, idle_s=60.0)

    told = watched(lambda now, num: seen(now, num, start_s=100.0), 190, rule)

    assert {d.after for d in told} == {1}


def test_nothing_goes_before_less_was_needed_for_a_whole_window() -> None:
    told = watched(
        lambda now, num: seen(now, num, num_running=1, arriving=50.0), 400, memory=Memory(4)
    )

    steps = [(tick * 5, d.after) for tick, d in enumerate(told) if d.action is Action.DOWN]
    assert steps == [(300, 1)]


def test_nothing_goes_while_work_waits_longer_than_is_aimed_at() -> None:
    # Caught up with within a start and the target, but not within the target.
    work = {"num_queued": 40, "queued_cost": 4_500.0, "num_running": 8}

    told = watched(lambda now, _: seen(now, 4, **work), 400, memory=Memory(4))

    assert {d.after for d in told} == {4}
    assert told[-1].reason == "wait_over_target"


@pytest.mark.parametrize("measured_at", [None, -STALE_AFTER_S - 1])
def test_nothing_changes_by_what_is_missing_or_old(measured_at: float | None) -> None:
    work = {"num_queued": 500, "queued_cost": 50_000.0}

    decision, memory = decide(RULE, seen(measured_at=measured_at, **work), Memory(3))

    assert (decision.after, decision.reason) == (3, "stale")
    assert memory == Memory(3)


def test_what_there_is_no_room_for_is_told_and_not_wanted() -> None:
    work = {"num_queued": 600, "queued_cost": 60_000.0, "num_running": 4, "num_possible": 2}

    told = watched(lambda now, num: seen(now, num, **work), 30)

    assert told[-1].after == 2
    assert told[-1].reason == "no_room"
    assert told[-1].lacking == 6


def test_a_number_outside_of_the_bounds_is_brought_back() -> None:
    (told,) = watched(lambda now, _: seen(now, 9), 0, memory=Memory(9))

    assert (told.after, told.reason) == (8, "bounds")


def test_a_time_to_first_token_leaves_the_wait_what_the_first_token_does_not_take() -> None:
    rule = Scale(max=8, target_ttft_s=5.0)

    (told,) = watched(lambda now, _: seen(now, 1, first_chunk_s=2.0), 0, rule)

    assert told.inputs["target_s"] == 3.0


def test_after_a_restart_the_greater_number_is_held_for_a_window() -> None:
    for stored, current in ((4, 2), (2, 4)):
        told = watched(seen, 295, memory=started(stored, current, 0.0))

        assert {d.after for d in told} == {4}


def test_without_a_speed_the_number_goes_down_as_well() -> None:
    told = watched(lambda now, num: seen(now, num, speeds={}), 400, memory=Memory(3))

    assert told[-1].after == 1
