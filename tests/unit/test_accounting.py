"""What the moves of a task cost its flow."""

from __future__ import annotations

from scheduler import moves
from scheduler.flow import DEFAULT_CLASS, Tenant
from scheduler.stores.base import Transaction
from scheduler.testing.tasks import MODEL, chunk
from tests.unit.moving import NOW, RULES, claim, submit


def service(tx: Transaction) -> dict[str, int]:
    return {flow.tenant: flow.charged_cost for flow in tx.flows(MODEL)}


def test_a_claim_is_charged_with_the_estimate_and_settled_with_what_was_used(
    tx: Transaction,
) -> None:
    submit(tx)
    claim(tx)
    assert service(tx) == {"ann": 25}
    moves.append(tx, RULES, "t1", 1, [chunk(0, 1, 2, 3)], NOW)

    moves.succeed(tx, RULES, "t1", 1, {}, NOW)

    assert service(tx) == {"ann": 5 + 2 * 3}
    assert tx.flow(MODEL, DEFAULT_CLASS, "ann").virtual_time == 11_000


def test_output_beyond_the_estimate_is_charged_as_it_comes(tx: Transaction) -> None:
    submit(tx)
    claim(tx)

    moves.append(tx, RULES, "t1", 1, [chunk(0, *range(12))], NOW)

    assert service(tx) == {"ann": 5 + 2 * 12}


def test_a_lost_attempt_costs_what_it_journalled_and_the_next_does_not_pay_it_again(
    tx: Transaction,
) -> None:
    submit(tx)
    submit(tx, "t2")  # the flow stays active: nothing is lifted
    claim(tx)
    moves.append(tx, RULES, "t1", 1, [chunk(0, 1, 2, 3)], NOW)
    moves.release(tx, RULES, "t1", 1, "worker died", NOW)
    assert service(tx) == {"ann": 11}

    claim(tx)
    assert service(tx) == {"ann": 25}
    moves.append(tx, RULES, "t1", 2, [chunk(1, 4)], NOW)
    moves.succeed(tx, RULES, "t1", 2, {}, NOW)

    assert service(tx) == {"ann": 13}
    assert tx.flow(MODEL, DEFAULT_CLASS, "ann").virtual_time == 13_000


def test_an_attempt_lost_before_its_first_token_is_free(tx: Transaction) -> None:
    submit(tx)
    claim(tx)

    moves.release(tx, RULES, "t1", 1, "worker died", NOW)

    assert service(tx) == {"ann": 0}


def test_a_prompt_is_paid_for_when_its_owner_cancels_the_work(tx: Transaction) -> None:
    submit(tx)
    claim(tx)

    moves.cancel(tx, RULES, "t1", None, "", NOW)

    assert service(tx) == {"ann": 5}


def test_work_without_tokens_costs_its_estimate(tx: Transaction) -> None:
    submit(tx, estimated_cost=40, prompt_cost=40, cost_per_token=0)
    claim(tx)

    moves.succeed(tx, RULES, "t1", 1, {"embeddings": []}, NOW)

    assert service(tx) == {"ann": 40}


def test_a_refund_is_exact_although_the_weight_changed(tx: Transaction) -> None:
    submit(tx)
    submit(tx, "t2")  # the flow stays active: nothing is lifted
    claim(tx)
    assert tx.flow(MODEL, DEFAULT_CLASS, "ann").virtual_time == 25_000
    tx.put_tenant(Tenant("ann", weight_permille=5000))

    moves.release(tx, RULES, "t1", 1, "worker died", NOW)

    assert tx.flow(MODEL, DEFAULT_CLASS, "ann").virtual_time == 0
