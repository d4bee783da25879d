"""Ids sort by the moment they were drawn."""

from __future__ import annotations

from scheduler.clock import ManualClock
from scheduler.ids import IdSource, encode


def test_ids_of_one_millisecond_sort_by_arrival() -> None:
    new_id = IdSource(ManualClock())

    ids = [new_id() for _ in range(100)]

    assert ids == sorted(set(ids))


def test_a_later_id_is_greater() -> None:
    clock = ManualClock()
    new_id = IdSource(clock)

    first = new_id()
    clock.advance(0.001)

    assert new_id() > first


def test_ids_go_on_growing_when_the_clock_runs_back() -> None:
    class Backwards(ManualClock):
        def now(self) -> float:
            self._now -= 1
            return self._now

    new_id = IdSource(Backwards())

    assert new_id() < new_id() < new_id()


def test_an_id_is_a_ulid() -> None:
    # The example of the ULID specification: 1469918176385 ms is 01ARYZ6S41.
    assert encode(1469918176385 << 80) == "01ARYZ6S41" + "0" * 16
