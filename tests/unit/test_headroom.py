"""How many slots are kept for those who come, and for how long."""

from __future__ import annotations

import pytest

from scheduler.dispatcher.headroom import Headroom, Offer
from scheduler.dispatcher.sessions import Room


@pytest.fixture
def shared() -> Headroom:
    """Two tenants were served."""
    headroom = Headroom()
    headroom.served("demo", "ann", 10.0)
    headroom.served("demo", "bob", 20.0)
    return headroom


def kept_s(headroom: Headroom, room: Room, until: float) -> float:
    """Slot seconds that ann is kept from, who wants all there is, while bob comes every second and
    takes nothing; looked at ten times a second."""
    total, now, full = 0.0, 20.0, Room(0, room.capacity)
    while now < until:
        headroom.served("demo", "ann", now)
        headroom.served("demo", "bob", now)
        is_kept = headroom.offer("demo", 1, room, now).most_leased is not None
        now_room = room if is_kept else full
        headroom.kept("demo", now_room.free, room.capacity, now)
        total += 0.1 * now_room.free
        now += 0.1
    return total


def test_a_tenant_alone_may_have_every_slot() -> None:
    headroom = Headroom()
    headroom.served("demo", "ann", 10.0)
    headroom.served("other", "bob", 10.0)

    assert headroom.offer("demo", 4, Room(4, 16), now=11.0) == Offer(4)


def test_of_several_tenants_slots_the_last_is_for_flows_that_hold_less_than_half(
    shared: Headroom,
) -> None:
    assert shared.offer("demo", 4, Room(4, 16), now=21.0) == Offer(3)
    assert shared.offer("demo", 1, Room(1, 16), now=21.0) == Offer(1, most_leased=8)


def test_one_slot_in_thirty_two_is_kept(shared: Headroom) -> None:
    assert shared.offer("demo", 40, Room(40, 96), now=21.0) == Offer(37)


def test_a_model_of_one_slot_keeps_none(shared: Headroom) -> None:
    assert shared.offer("demo", 1, Room(1, 1), now=21.0) == Offer(1)


def test_a_tenant_that_has_been_away_for_long_is_not_waited_for(shared: Headroom) -> None:
    assert shared.offer("demo", 4, Room(4, 16), now=45.0) == Offer(4)


def test_the_last_slot_goes_to_anybody_while_another_is_about_to_be_free(shared: Headroom) -> None:
    assert shared.offer("demo", 1, Room(1, 16, ending=1), now=21.0) == Offer(1)
    assert shared.offer("demo", 2, Room(2, 16, ending=1), now=21.0) == Offer(2)


def test_no_more_is_offered_than_is_free_however_much_is_about_to_be(shared: Headroom) -> None:
    assert shared.offer("demo", 4, Room(1, 16, ending=5), now=21.0) == Offer(1)


@pytest.mark.parametrize("capacity", [2, 4, 16, 48])
def test_over_a_long_time_one_in_thirty_two_slot_seconds_is_kept_at_most(capacity: int) -> None:
    kept = kept_s(Headroom(), Room(-(-capacity // 32), capacity), until=620.0)

    assert kept / (600 * capacity) == pytest.approx((1 + 30 / 600) / 32, rel=0.01)


def test_of_two_slots_one_is_kept_for_two_seconds_and_not_for_thirty() -> None:
    assert kept_s(Headroom(), Room(1, 2), until=24.0) == pytest.approx(2.1, abs=0.2)


def test_what_nobody_waits_for_costs_nothing(shared: Headroom) -> None:
    shared.kept("demo", 0, 2, now=21.0)

    shared.served("demo", "ann", 40.0)
    shared.served("demo", "bob", 40.0)
    assert shared.offer("demo", 1, Room(1, 2), now=41.0) == Offer(1, most_leased=1)


def test_what_was_kept_for_too_long_is_made_up_for(shared: Headroom) -> None:
    """Nobody looked for a while: from a debt, nothing is kept until it is paid."""
    shared.kept("demo", 1, 2, now=20.0)
    for tenant in ("ann", "bob"):
        shared.served("demo", tenant, 30.0)

    assert shared.offer("demo", 1, Room(1, 2), now=30.0) == Offer(1)
    shared.kept("demo", 0, 2, now=30.0)
    assert shared.offer("demo", 1, Room(1, 2), now=59.0) == Offer(1)
