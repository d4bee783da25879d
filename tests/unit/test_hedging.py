"""Which tasks may be handed to another replica, and when."""

from __future__ import annotations

from typing import Any

from scheduler.dispatcher.hedging import MAX_PROMPT_COST, Hedges
from scheduler.dispatcher.sessions import LeaseKey, Slot
from scheduler.task import Task, TaskState

SLOT = Slot("late", "c", "demo__r0", 1)


def task(number: int = 0, **changes: Any) -> Task:
    values: dict[str, Any] = {"prompt_cost": 10, "fence": 1, "priority_class": "interactive"}
    values |= changes
    cost = values.pop("prompt_cost")
    state = TaskState.LEASED
    return Task(f"t{number}", "ann", "demo", {}, state, 0, None, None, 1, cost, 2, **values)


def measured(num_grants: int = 40, seconds: float = 1.0) -> Hedges:
    """Grants of the model whose first chunk took so long."""
    hedges = Hedges()
    for number in range(num_grants):
        hedges.granted(SLOT, task(number), 0.0, is_flaky=False)
        hedges.begun(LeaseKey(f"t{number}", 1), seconds)
    return hedges


def late(hedges: Hedges, now: float = 1.5, **changes: Any) -> list[str]:
    is_flaky = changes.pop("is_flaky", True)
    hedges.granted(SLOT, task(99, **changes), 0.0, is_flaky=is_flaky)
    return [waiting.lease.task_id for waiting in hedges.overdue(now)]


def test_one_that_takes_longer_than_others_did_in_a_flaky_container_may_go() -> None:
    assert late(measured()) == ["t99"]


def test_one_that_is_not_late_yet_stays() -> None:
    assert late(measured(), now=0.9) == []


def test_nothing_goes_before_enough_was_measured() -> None:
    assert late(measured(19)) == []


def test_where_nothing_is_flaky_nothing_goes() -> None:
    hedges = measured()

    assert late(hedges, is_flaky=False) == []
    assert not hedges.is_watching


def test_a_long_prompt_and_other_classes_stay() -> None:
    assert late(measured(), prompt_cost=MAX_PROMPT_COST + 1) == []
    assert late(measured(), priority_class="batch") == []


def test_one_that_has_output_already_stays() -> None:
    assert late(measured(), num_chunks=1) == []


def test_a_first_chunk_or_an_end_takes_it_off_the_list() -> None:
    for forget in ("begun", "ended"):
        hedges = measured()
        assert late(hedges) == ["t99"]
        lease = LeaseKey("t99", 1)
        hedges.begun(lease, 1.6) if forget == "begun" else hedges.ended(lease)
        assert hedges.overdue(9.0) == []


def test_at_most_one_grant_in_twenty_is_handed_over() -> None:
    hedges = measured(200)
    for number in range(300, 340):
        hedges.granted(SLOT, task(number), 0.0, is_flaky=True)

    gone = 0
    while found := hedges.overdue(5.0):
        hedges.ended(found[0].lease)
        hedges.handed_over()
        gone += 1

    assert gone == 5
