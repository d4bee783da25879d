"""What is noted of providers, how it fades, and what it says of a container."""

from __future__ import annotations

import pytest

from scheduler.container import (
    FLAKY_RATE,
    HALF_LIFE_S,
    ContainerOrder,
    Event,
    Flakiness,
    OrderState,
    Reliance,
)

BLANK = Flakiness("here", "")


def known(*notes: Flakiness, node_class: str = "") -> Reliance:
    reliance = Reliance()
    order = ContainerOrder("here", 0, 1, OrderState.UP, "c1", node_class=node_class)
    reliance.learn(notes, [order])
    return reliance


def test_a_loss_makes_a_new_provider_flaky() -> None:
    assert BLANK.rate < FLAKY_RATE < BLANK.noted(Event.LOSS).rate


def test_a_loss_weighs_more_than_a_stall_and_that_more_than_a_slow_start() -> None:
    rates = [BLANK.noted(event).rate for event in (Event.LOSS, Event.STALL, Event.SLOW_START)]

    assert rates == sorted(rates, reverse=True)
    assert len(set(rates)) == 3


def test_what_was_noted_counts_half_after_a_half_life() -> None:
    faded = Flakiness("here", "", 4.0, 2.0, 1.0, 8.0).at(HALF_LIFE_S)

    assert (faded.losses, faded.stalls, faded.slow_starts, faded.hours) == (2.0, 1.0, 0.5, 4.0)


def test_a_clock_that_was_set_back_fades_nothing() -> None:
    note = Flakiness("here", "", losses=1.0, noted_at=100.0)

    assert note.at(50.0) == note


def test_quiet_hours_bring_trust() -> None:
    trusts = [known(Flakiness("here", "", hours=h)).trust("here", "c1") for h in (0, 1, 5, 50)]

    assert trusts == sorted(trusts)
    assert trusts[-1] == 1.0


def test_a_flaky_container_is_not_trusted_at_all() -> None:
    reliance = known(BLANK.noted(Event.LOSS))

    assert reliance.is_flaky("here", "c1")
    assert reliance.trust("here", "c1") == 0.0


def test_a_node_in_no_container_is_neither_flaky_nor_trusted() -> None:
    reliance = known()

    assert not reliance.is_flaky("", "")
    assert reliance.trust("", "") == 0.0


@pytest.mark.parametrize(("node_class", "is_flaky"), [("old", True), ("new", False)])
def test_classes_of_one_provider_are_told_apart(node_class: str, is_flaky: bool) -> None:
    notes = (Flakiness("here", "old", losses=3.0), Flakiness("here", "new", hours=9.0))

    assert known(*notes, node_class=node_class).is_flaky("here", "c1") is is_flaky
