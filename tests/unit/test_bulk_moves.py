"""What happens to a bulk: filled without doubling, closed, taken back, removed."""

from __future__ import annotations

from typing import Any

import pytest

from scheduler import moves
from scheduler.bulk import MAX_INPUTS, Bulk
from scheduler.errors import (
    BulkClosed,
    BulkNotFound,
    InputsDiffer,
    InvalidRequest,
    QuotaExceeded,
)
from scheduler.moves import bulks
from scheduler.records import changed
from scheduler.stores.base import Transaction
from scheduler.task import Submission, TaskState
from scheduler.testing.tasks import MODEL, rules, submission

BULK = Bulk("b", "ann", MODEL, "batch", 0.0, idempotency_key="k")
RULES = rules()


def inputs(count: int, start: int = 0, word: str = "p") -> list[Submission]:
    return [
        submission(
            document={"prompt": f"{word}{place}"},
            priority_class="batch",
            bulk_id="b",
            bulk_index=place,
        )
        for place in range(start, start + count)
    ]


def extend(tx: Transaction, start: int, given: list[Submission], now: float = 1.0) -> Bulk:
    ids = [f"t{tx.bulk('b').num_inputs:03}-{n:03}" for n in range(len(given))]
    return bulks.extend(tx, RULES, "b", start, given, ids, now).value


def test_a_key_has_one_bulk(tx: Transaction) -> None:
    first = bulks.begin(tx, BULK, 0.0)
    again = bulks.begin(tx, changed(BULK, id="other", name="later"), 5.0)

    assert (first, again) == (BULK, BULK)
    assert tx.bulk("other") is None


@pytest.mark.parametrize("changes", [{"model": "other"}, {"priority_class": "standard"}])
def test_another_bulk_under_the_key_is_refused(tx: Transaction, changes: Any) -> None:
    bulks.begin(tx, BULK, 0.0)

    with pytest.raises(InputsDiffer, match="take another key"):
        bulks.begin(tx, changed(BULK, id="other", **changes), 0.0)


def test_a_class_that_does_not_exist_is_named_with_those_that_do(tx: Transaction) -> None:
    with pytest.raises(InvalidRequest, match="batch, interactive, standard"):
        bulks.begin(tx, changed(BULK, priority_class="golden"), 0.0)


def test_inputs_become_tasks_in_their_places(tx: Transaction) -> None:
    bulks.begin(tx, BULK, 0.0)

    bulk = extend(tx, 0, inputs(3))

    assert bulk.num_inputs == 3
    tasks = tx.bulk_tasks("b", 0, 10)
    assert [(task.bulk_index, task.document["prompt"]) for task in tasks] == [
        (0, "p0"), (1, "p1"), (2, "p2"),
    ]  # fmt: skip
    assert tx.flow(MODEL, "batch", "ann").num_queued == 3


def test_whoever_waits_for_work_hears_of_a_batch_once(tx: Transaction) -> None:
    bulks.begin(tx, BULK, 0.0)
    ids = ["t0", "t1", "t2"]

    outcome = bulks.extend(tx, RULES, "b", 0, inputs(3), ids, 1.0)
    repeated = bulks.extend(tx, RULES, "b", 0, inputs(3), ids, 1.0)

    assert [change.task.id for change in outcome.changes] == ["t0"]
    assert repeated.changes == ()


@pytest.mark.parametrize("start", [0, 1, 2, 3])
def test_a_repeat_doubles_nothing_and_goes_on(tx: Transaction, start: int) -> None:
    bulks.begin(tx, BULK, 0.0)
    extend(tx, 0, inputs(3))

    bulk = extend(tx, start, inputs(5 - start, start))

    assert bulk.num_inputs == 5
    assert [task.bulk_index for task in tx.bulk_tasks("b", 0, 10)] == [0, 1, 2, 3, 4]


def test_another_input_in_a_place_is_refused(tx: Transaction) -> None:
    bulks.begin(tx, BULK, 0.0)
    extend(tx, 0, inputs(3))

    with pytest.raises(InputsDiffer, match="input 2 was another one"):
        extend(tx, 2, inputs(2, 2, word="q"))


def test_a_gap_is_refused(tx: Transaction) -> None:
    bulks.begin(tx, BULK, 0.0)
    extend(tx, 0, inputs(3))

    with pytest.raises(InvalidRequest, match="begins at place 4, and the bulk has 3"):
        extend(tx, 4, inputs(1, 4))


def test_a_bulk_has_a_largest_size(tx: Transaction) -> None:
    tx.put_bulk(changed(BULK, num_inputs=MAX_INPUTS - 1))

    assert extend(tx, MAX_INPUTS - 1, inputs(1, MAX_INPUTS - 1)).num_inputs == MAX_INPUTS
    with pytest.raises(InvalidRequest, match="at most 100000"):
        extend(tx, MAX_INPUTS, inputs(1, MAX_INPUTS))


def test_a_quota_refuses_a_batch_whole(tx: Transaction) -> None:
    tx.put_tenant(changed(tx.tenant("ann"), max_queued=4))
    bulks.begin(tx, BULK, 0.0)
    extend(tx, 0, inputs(3))

    with pytest.raises(QuotaExceeded):
        extend(tx, 3, inputs(2, 3))
    assert extend(tx, 3, inputs(1, 3)).num_inputs == 4


def test_a_closed_bulk_takes_a_repeat_and_nothing_more(tx: Transaction) -> None:
    bulks.begin(tx, BULK, 0.0)
    extend(tx, 0, inputs(3))

    closed = bulks.close(tx, "b", "ann", 5.0)

    assert bulks.close(tx, "b", "ann", 9.0) == closed
    assert extend(tx, 0, inputs(3)) == closed
    with pytest.raises(BulkClosed, match="is closed with 3 inputs"):
        extend(tx, 3, inputs(1, 3))


def test_what_is_taken_back_is_cancelled_some_at_a_time(tx: Transaction) -> None:
    bulks.begin(tx, BULK, 0.0)
    extend(tx, 0, inputs(5))
    (grant,) = moves.claim(tx, RULES, MODEL, "r", "demo__r0", 1, 2.0).value
    moves.succeed(tx, RULES, grant.task.id, grant.task.fence, {}, 3.0)
    moves.claim(tx, RULES, MODEL, "r", "demo__r0", 1, 3.0)

    bulks.revoke(tx, "b", "ann", 4.0)
    first = bulks.cancel_some(tx, RULES, "b", "taken back", 4.0, 3)
    rest = bulks.cancel_some(tx, RULES, "b", "taken back", 4.0, 3)

    assert (len(first.value), len(rest.value)) == (3, 1)
    leases = [change.ended_lease for change in (*first.changes, *rest.changes)]
    assert sum(lease is not None for lease in leases) == 1
    assert tx.bulk_counts("b") == {TaskState.SUCCEEDED: 1, TaskState.CANCELLED: 4}
    with pytest.raises(BulkClosed, match="was cancelled"):
        extend(tx, 5, inputs(1, 5))


def test_a_bulk_is_removed_after_its_last_task(tx: Transaction) -> None:
    bulks.begin(tx, BULK, 0.0)
    extend(tx, 0, inputs(1))
    bulks.revoke(tx, "b", None, 4.0)
    bulks.cancel_some(tx, RULES, "b", "", 4.0, 10)

    assert bulks.purge(tx, 100.0, 10) == 0
    assert moves.purge(tx, 100.0, 10) == 1
    assert bulks.purge(tx, 4.0, 10) == 0
    assert bulks.purge(tx, 100.0, 10) == 1
    with pytest.raises(BulkNotFound):
        bulks.owned(tx, "b")


def test_a_bulk_is_its_tenants_alone(tx: Transaction) -> None:
    bulks.begin(tx, BULK, 0.0)

    assert bulks.owned(tx, "b", "ann") == BULK
    with pytest.raises(BulkNotFound):
        bulks.owned(tx, "b", "bob")
