"""The moves of a task that lead to output: what each needs, changes and refuses."""

from __future__ import annotations

import pytest

from scheduler import moves
from scheduler.errors import IdempotencyConflict
from scheduler.stores.base import Transaction
from scheduler.task import JournalChunk, TaskError, TaskState
from scheduler.testing.tasks import chunk, submission
from tests.unit.moving import NOW, RULES, claim, submit

# -- submit


def test_a_submission_becomes_a_queued_task(tx: Transaction) -> None:
    outcome = moves.submit(tx, RULES, submission(priority=3), "t1", NOW)

    task, is_new = outcome.value
    assert is_new
    assert tx.task("t1") == task
    assert (task.state, task.priority, task.accepted_at) == (TaskState.QUEUED, 3, NOW)


def test_a_repeated_key_with_the_same_request_is_the_same_task(tx: Transaction) -> None:
    first = submit(tx, idempotency_key="k")

    outcome = moves.submit(tx, RULES, submission(idempotency_key="k"), "t2", NOW)

    assert outcome.value == (first, False)
    assert outcome.changes == ()


def test_a_repeated_key_with_another_request_is_refused(tx: Transaction) -> None:
    submit(tx, idempotency_key="k")

    with pytest.raises(IdempotencyConflict, match="belongs to task t1"):
        submit(tx, "t2", idempotency_key="k", document={"prompt": "other"})


def test_tenants_do_not_share_keys(tx: Transaction) -> None:
    submit(tx, idempotency_key="k")

    assert submit(tx, "t2", tenant="bob", idempotency_key="k").id == "t2"


# -- claim


def test_a_claim_leases_the_task_under_a_new_fence(tx: Transaction) -> None:
    submit(tx)

    (grant,) = claim(tx)

    task = grant.task
    assert (task.state, task.fence, task.attempt) == (TaskState.LEASED, 1, 1)
    assert (task.runner, task.replica) == ("runner-1", "demo__r0")
    assert (task.lease_expires_at, task.first_claimed_at) == (NOW + 10, NOW)
    assert tx.task("t1") == task


def test_a_claim_of_an_empty_queue_grants_nothing(tx: Transaction) -> None:
    assert claim(tx) == []


def test_a_leased_task_is_not_claimed_again(tx: Transaction) -> None:
    submit(tx)
    claim(tx)

    assert claim(tx) == []


def test_within_a_flow_priority_then_deadline_then_arrival_decide(tx: Transaction) -> None:
    submit(tx, "1-late")
    submit(tx, "2-deadline", deadline_at=NOW + 50)
    submit(tx, "3-sooner", deadline_at=NOW + 20)
    submit(tx, "4-urgent", priority=1)
    submit(tx, "5-last")

    order = [grant.task.id for grant in claim(tx, limit=10)]

    assert order == ["4-urgent", "3-sooner", "2-deadline", "1-late", "5-last"]


def test_a_claim_expires_tasks_that_nobody_wants_any_more(tx: Transaction) -> None:
    submit(tx, "t1", deadline_at=NOW + 5)
    submit(tx, "t2")

    grants = claim(tx, now=NOW + 5)

    assert [grant.task.id for grant in grants] == ["t2"]
    expired = moves.owned(tx, "t1")
    assert expired.state is TaskState.EXPIRED
    assert expired.error == TaskError(504, "the task's deadline passed while it waited")


def test_a_claim_does_not_expire_without_end(
    tx: Transaction, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scheduler.moves.dispatch.MAX_EXPIRED", 2)
    for number in range(5):
        submit(tx, f"t{number}", deadline_at=NOW + 1)
    submit(tx, "t9")

    assert claim(tx, NOW + 2) == []
    assert [grant.task.id for grant in claim(tx, NOW + 2)] == ["t9"]


def test_a_grant_carries_what_earlier_attempts_produced(tx: Transaction) -> None:
    submit(tx)
    claim(tx)
    moves.append(tx, RULES, "t1", 1, [chunk(0, 7, 8), chunk(1, 9)], NOW)
    moves.release(tx, RULES, "t1", 1, "worker died", NOW)

    (grant,) = claim(tx)

    assert grant.generated == ((7, 8, 9),)
    assert grant.task.num_chunks == 2


def test_a_grant_carries_what_each_answer_has(tx: Transaction) -> None:
    submit(tx, document={"prompt": "def", "n": 3})
    claim(tx)
    chunks = [JournalChunk(0, (7,), "a"), JournalChunk(1, (5,), "b", 1), JournalChunk(2, (8,), "c")]
    moves.append(tx, RULES, "t1", 1, chunks, NOW)
    moves.release(tx, RULES, "t1", 1, "worker died", NOW)

    (grant,) = claim(tx)

    assert grant.generated == ((7, 8), (5,))
    assert grant.task.num_tokens == 3


# -- append


def test_chunks_already_there_are_skipped(tx: Transaction) -> None:
    submit(tx)
    claim(tx)
    moves.append(tx, RULES, "t1", 1, [chunk(0), chunk(1)], NOW)

    outcome = moves.append(tx, RULES, "t1", 1, [chunk(1), chunk(2)], NOW)

    assert outcome.value == 3
    assert outcome.changes[0].chunks == (chunk(2),)


@pytest.mark.parametrize("seqs", [(1,), (0, 2), (0, 1, 1)])
def test_a_gap_or_repeat_among_new_chunks_is_refused(tx: Transaction, seqs: list[int]) -> None:
    submit(tx)
    claim(tx)

    with pytest.raises(ValueError, match=r"task t1: chunk . came where . is next"):
        moves.append(tx, RULES, "t1", 1, [chunk(seq) for seq in seqs], NOW)


def test_the_first_chunk_is_timed_once(tx: Transaction) -> None:
    submit(tx)
    claim(tx)
    moves.append(tx, RULES, "t1", 1, [chunk(0)], NOW + 1)
    moves.append(tx, RULES, "t1", 1, [chunk(1)], NOW + 2)

    assert moves.owned(tx, "t1").first_chunk_at == NOW + 1


# -- leases


def test_a_renewed_lease_lasts_a_full_term_and_foreign_ones_are_named(tx: Transaction) -> None:
    submit(tx)
    claim(tx)

    held = [("t1", 1), ("t1", 2), ("nothing", 1)]
    lost = moves.renew(tx, RULES, "runner-1", held, NOW + 8).value

    assert lost == [("t1", 2), ("nothing", 1)]
    assert moves.owned(tx, "t1").lease_expires_at == NOW + 18
    assert moves.renew(tx, RULES, "runner-2", [("t1", 1)], NOW).value == [("t1", 1)]


def test_a_lease_that_ran_out_is_taken_back_and_told(tx: Transaction) -> None:
    submit(tx)
    leased = claim(tx)[0].task

    assert moves.lose_expired(tx, RULES, NOW + 9.9, 10).value == []
    outcome = moves.lose_expired(tx, RULES, NOW + 10, 10)

    assert outcome.value[0].state is TaskState.QUEUED
    assert outcome.changes[0].ended_lease == leased
    assert "nothing was heard of it for 10 s" in tx.attempts("t1")[0].reason


def test_a_deadline_ends_a_running_task_and_is_told(tx: Transaction) -> None:
    submit(tx, deadline_at=NOW + 5)
    leased = claim(tx)[0].task

    outcome = moves.expire_overdue(tx, RULES, NOW + 5, 10)

    assert outcome.value[0].state is TaskState.EXPIRED
    assert outcome.changes[0].ended_lease == leased


def test_a_sweep_for_leases_moves_no_more_than_its_limit(tx: Transaction) -> None:
    for name in ("t1", "t2", "t3"):
        submit(tx, name)
    claim(tx, limit=3)

    assert len(moves.lose_expired(tx, RULES, NOW + 99, 2).value) == 2
    assert len(moves.lose_expired(tx, RULES, NOW + 99, 2).value) == 1


def test_a_restarted_runner_gives_back_what_it_forgot(tx: Transaction) -> None:
    submit(tx, "t1")
    submit(tx, "t2")
    claim(tx, limit=2)

    freed = moves.release_others(tx, RULES, "runner-1", [("t2", 1)], "restarted", NOW).value

    assert [task.id for task in freed] == ["t1"]
    assert moves.owned(tx, "t2").state is TaskState.LEASED


def test_live_leases_get_a_full_term_after_the_control_plane_was_away(tx: Transaction) -> None:
    submit(tx)
    claim(tx)

    assert moves.renew_all(tx, RULES, NOW + 100).value == 1
    assert moves.lose_expired(tx, RULES, NOW + 105, 10).value == []
