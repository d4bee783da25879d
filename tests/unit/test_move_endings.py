"""How a task's attempt or the task itself ends: what each move needs, changes and refuses."""

from __future__ import annotations

import pytest

from scheduler import moves
from scheduler.errors import StaleLease, TaskNotFound
from scheduler.stores.base import Transaction
from scheduler.task import TaskError, TaskState
from scheduler.testing.tasks import MODEL, chunk
from tests.unit.moving import NOW, RULES, claim, submit


def test_success_keeps_the_result_and_ends_the_lease(tx: Transaction) -> None:
    submit(tx)
    claim(tx)

    task = moves.succeed(tx, RULES, "t1", 1, {"reason": "eos"}, NOW + 3).value

    assert (task.state, task.result, task.finished_at) == (
        TaskState.SUCCEEDED,
        {"reason": "eos"},
        NOW + 3,
    )
    assert (task.runner, task.lease_expires_at) == (None, None)
    assert tx.attempts("t1")[0].outcome == "succeeded"


def test_repeating_a_success_gives_the_stored_answer(tx: Transaction) -> None:
    submit(tx)
    claim(tx)
    first = moves.succeed(tx, RULES, "t1", 1, {"n": 1}, NOW).value

    again = moves.succeed(tx, RULES, "t1", 1, {"n": 2}, NOW + 9)

    assert again.value == first
    assert again.changes == ()


def test_a_failure_after_success_under_the_same_fence_is_stale(tx: Transaction) -> None:
    submit(tx)
    claim(tx)
    moves.succeed(tx, RULES, "t1", 1, {}, NOW)

    with pytest.raises(StaleLease):
        moves.fail(tx, RULES, "t1", 1, TaskError(500, "no"), NOW)


def test_a_failure_tells_its_reason_and_repeats(tx: Transaction) -> None:
    submit(tx)
    claim(tx)
    error = TaskError(422, "too long", "prompt")

    failed = moves.fail(tx, RULES, "t1", 1, error, NOW).value

    assert (failed.state, failed.error) == (TaskState.FAILED, error)
    assert moves.fail(tx, RULES, "t1", 1, error, NOW).value == failed
    assert tx.attempts("t1")[0].reason == "too long"


def test_a_released_task_is_first_in_its_flow_again(tx: Transaction) -> None:
    submit(tx, "t1")
    submit(tx, "t2")
    claim(tx)

    released = moves.release(tx, RULES, "t1", 1, "worker died", NOW).value

    assert released.state is TaskState.QUEUED
    assert claim(tx)[0].task.id == "t1"


def test_repeating_a_release_loses_one_attempt_only(tx: Transaction) -> None:
    submit(tx)
    claim(tx)
    first = moves.release(tx, RULES, "t1", 1, "worker died", NOW).value

    assert moves.release(tx, RULES, "t1", 1, "worker died", NOW).value == first


def test_a_task_that_cannot_go_on_is_queued_again_as_long_as_nothing_is_on_disk(
    tx: Transaction,
) -> None:
    submit(tx, resume="none")
    claim(tx)

    assert moves.release(tx, RULES, "t1", 1, "worker died", NOW).value.state is TaskState.QUEUED


def test_a_task_that_cannot_go_on_fails_once_output_is_on_disk(tx: Transaction) -> None:
    submit(tx, resume="none")
    claim(tx)
    moves.append(tx, RULES, "t1", 1, [chunk(0, 7, 8)], NOW)

    task = moves.release(tx, RULES, "t1", 1, "worker died", NOW).value

    assert task.state is TaskState.FAILED
    assert task.error == TaskError(
        500,
        "cannot go on from its 2 tokens on disk (resume: none); send it anew: "
        "attempt 1 on demo__r0 of runner-1: worker died",
    )
    assert moves.release(tx, RULES, "t1", 1, "worker died", NOW).value == task


@pytest.mark.parametrize("resume", ["exact", "close"])
def test_a_task_that_can_go_on_does_so_from_what_is_on_disk(tx: Transaction, resume: str) -> None:
    submit(tx, resume=resume)
    claim(tx)
    moves.append(tx, RULES, "t1", 1, [chunk(0)], NOW)

    assert moves.release(tx, RULES, "t1", 1, "worker died", NOW).value.state is TaskState.QUEUED


def test_a_lease_that_ran_out_fails_a_task_that_cannot_go_on(tx: Transaction) -> None:
    submit(tx, resume="none")
    claim(tx)
    moves.append(tx, RULES, "t1", 1, [chunk(0)], NOW)

    (task,) = moves.lose_expired(tx, RULES, NOW + 11, 10).value

    assert (task.state, task.resume) == (TaskState.FAILED, "none")


def test_a_task_that_lost_all_its_attempts_fails_with_their_history(tx: Transaction) -> None:
    submit(tx)
    claim(tx)
    moves.release(tx, RULES, "t1", 1, "worker died", NOW)
    claim(tx)

    task = moves.release(tx, RULES, "t1", 2, "replica gone", NOW).value

    assert task.state is TaskState.FAILED
    assert task.error == TaskError(
        500,
        "lost 2 of 2 attempts allowed: attempt 1 on demo__r0 of runner-1: worker died; "
        "attempt 2 on demo__r0 of runner-1: replica gone",
    )
    assert moves.release(tx, RULES, "t1", 2, "replica gone", NOW).value == task


def test_every_write_under_an_older_fence_is_stale_and_changes_nothing(tx: Transaction) -> None:
    submit(tx)
    claim(tx)
    moves.release(tx, RULES, "t1", 1, "worker died", NOW)
    claim(tx)
    before = tx.task("t1")

    for write in (
        lambda: moves.append(tx, RULES, "t1", 1, [chunk(0)], NOW),
        lambda: moves.succeed(tx, RULES, "t1", 1, {}, NOW),
        lambda: moves.fail(tx, RULES, "t1", 1, TaskError(500, "no"), NOW),
        lambda: moves.release(tx, RULES, "t1", 1, "late", NOW),
    ):
        with pytest.raises(StaleLease, match="lease 1 of task t1 has ended"):
            write()
    assert tx.task("t1") == before


def test_a_cancelled_lease_is_told_with_its_holder(tx: Transaction) -> None:
    submit(tx)
    leased = claim(tx)[0].task

    outcome = moves.cancel(tx, RULES, "t1", "ann", "not needed", NOW)

    assert outcome.value.state is TaskState.CANCELLED
    assert outcome.changes[0].ended_lease == leased
    assert tx.attempts("t1")[0].reason == "not needed"


def test_cancelling_what_is_final_changes_nothing(tx: Transaction) -> None:
    submit(tx)
    cancelled = moves.cancel(tx, RULES, "t1", None, "", NOW).value

    assert moves.cancel(tx, RULES, "t1", None, "again", NOW + 1).value == cancelled


def test_nobody_cancels_another_tenants_task(tx: Transaction) -> None:
    submit(tx)

    with pytest.raises(TaskNotFound):
        moves.cancel(tx, RULES, "t1", "bob", "", NOW)


def test_of_classes_that_stand_equal_the_heavier_goes_first(tx: Transaction) -> None:
    for number in range(3):
        submit(tx, f"b{number}", "miner", priority_class="batch")
    claim(tx)
    submit(tx, "chat", "chat", priority_class="interactive")

    parked = moves.preempt(tx, RULES, MODEL, NOW + 10).value
    granted = claim(tx, NOW + 10)

    assert [task.id for task in parked] == ["b0"]
    assert [grant.task.id for grant in granted] == ["chat"]
