"""How many slots are kept for those who come."""

from __future__ import annotations

import pytest

from scheduler.dispatcher.headroom import Headroom, Offer


@pytest.fixture
def shared() -> Headroom:
    """Two tenants were served."""
    headroom = Headroom()
    headroom.served("demo", "ann", 10.0)
    headroom.served("demo", "bob", 20.0)
    return headroom


def test_a_tenant_alone_may_have_every_slot() -> None:
    headroom = Headroom()
    headroom.served("demo", "ann", 10.0)
    headroom.served("other", "bob", 10.0)

    assert headroom.offer("demo", 4, free=4, capacity=16, now=11.0) == Offer(4)


def test_of_several_tenants_slots_the_last_is_for_flows_that_hold_less_than_half(
    shared: Headroom,
) -> None:
    assert shared.offer("demo", 4, free=4, capacity=16, now=21.0) == Offer(3)
    assert shared.offer("demo", 1, free=1, capacity=16, now=21.0) == Offer(1, most_leased=8)


def test_one_slot_in_thirty_two_is_kept(shared: Headroom) -> None:
    assert shared.offer("demo", 40, free=40, capacity=96, now=21.0) == Offer(37)


def test_a_model_of_one_slot_keeps_none(shared: Headroom) -> None:
    assert shared.offer("demo", 1, free=1, capacity=1, now=21.0) == Offer(1)


def test_a_tenant_that_has_been_away_for_long_is_not_waited_for(shared: Headroom) -> None:
    assert shared.offer("demo", 4, free=4, capacity=16, now=45.0) == Offer(4)
