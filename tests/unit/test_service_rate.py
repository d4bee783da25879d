"""How fast a model is served, from what was served in periods with so many slots busy."""

from __future__ import annotations

import pytest

from scheduler.service_rate import WINDOW_S, RateMeter


def measured(*periods: tuple[float, int, int]) -> RateMeter:
    """A meter that saw periods of a second: what was served, slots busy, slots there are."""
    meter = RateMeter()
    assert not meter.is_due(0.0)
    for number, (served, busy, capacity) in enumerate(periods, 1):
        meter.served(int(served))
        assert meter.is_due(float(number))
        meter.end_period(float(number), busy, capacity)
    return meter


def test_nothing_is_told_before_anything_was_served() -> None:
    assert RateMeter().rate(0.0) is None
    assert measured((0, 4, 4), (0, 4, 4), (0, 4, 4)).rate(3.0) is None
    assert measured((100, 4, 4)).rate(1.0) is None


def test_full_periods_tell_what_a_slot_gets_when_all_are_busy() -> None:
    rate = measured((900, 1, 4), *[(100, 4, 4)] * 4).rate(5.0)

    assert rate is not None
    assert (rate.per_slot, rate.measured_s, rate.was_full) == (25.0, 3.0, True)


def test_a_period_that_began_with_room_is_not_full() -> None:
    rate = measured(*[(100, 2, 4), (100, 4, 4)] * 3).rate(6.0)

    assert rate is not None
    assert not rate.was_full
    assert rate.per_slot == pytest.approx(100 / 3)


def test_silence_of_busy_slots_counts_and_that_of_idle_ones_does_not() -> None:
    slow = measured(*[(0, 1, 1)] * 9, (100, 1, 1)).rate(10.0)
    idle = measured((50, 1, 2), *[(0, 0, 2)] * 8, (50, 1, 2)).rate(10.0)

    assert slow is not None
    assert slow.per_slot == pytest.approx(100 / 9)
    assert idle is not None
    assert idle.per_slot == 50.0


def test_what_is_long_ago_is_forgotten() -> None:
    meter = measured(*[(100, 1, 1)] * 5)

    assert meter.rate(5.0) is not None
    assert meter.rate(6.0 + WINDOW_S) is None


def test_tasks_that_ended_tell_what_estimates_are_worth() -> None:
    meter = measured(*[(100, 1, 1)] * 3)
    meter.ended(30, 100)
    meter.ended(10, 100)
    meter.end_period(4.0, 1, 1)

    rate = meter.rate(4.0)
    assert rate is not None
    assert rate.used_ratio == pytest.approx(0.2)
