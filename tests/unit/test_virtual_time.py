"""The arithmetic of fair sharing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.flow import DEFAULT_CLASS, Band, Flow
from scheduler.policies.virtual_time import SCALE, Policy
from scheduler.records import changed
from scheduler.testing.tasks import MODEL, memory_transaction

COSTS = st.integers(0, 10**9)
WEIGHTS = st.integers(1, 1_000_000)


def test_a_token_at_weight_one_is_one_scale_of_virtual_time() -> None:
    assert Policy().price(7, 1000) == 7 * SCALE


def test_thrice_the_weight_pays_a_third() -> None:
    assert Policy().price(9, 3000) == 3 * SCALE


@given(COSTS, COSTS, WEIGHTS)
def test_charging_in_parts_is_off_by_less_than_a_unit(first: int, more: int, weight: int) -> None:
    policy = Policy()

    in_parts = policy.price(first, weight) + policy.price(more, weight)

    assert 0 <= policy.price(first + more, weight) - in_parts <= 1


@pytest.mark.parametrize(
    ("own", "least", "floor", "joined"),
    [
        (5, 40, 10, 40),  # silence earns nothing
        (50, 40, 10, 50),  # debts are kept
        (5, None, 10, 10),  # nobody is there: where the last one left
        (5, 3, 10, 5),  # somebody is there: the floor of earlier times does not count
    ],
)
def test_a_flow_that_returns_joins_the_least_of_the_active(
    own: int, least: int | None, floor: int, joined: int
) -> None:
    flow = Flow(MODEL, DEFAULT_CLASS, "ann", virtual_time=own, num_queued=1)
    band = Band(MODEL, DEFAULT_CLASS, virtual_floor=floor)
    with memory_transaction() as tx:
        if least is not None:
            tx.put_flow(changed(flow, tenant="bob", virtual_time=least))

        assert Policy().join(tx, flow, band) == (changed(flow, virtual_time=joined), band)
