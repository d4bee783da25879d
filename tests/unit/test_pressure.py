"""How many tasks are let in before memory or disk is at risk."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from scheduler.errors import Overloaded, StoreUnavailable
from scheduler.gateway.pressure import DISK_RETRY_S, QUEUE_RETRY_S, Pressure


class Machine:
    """A queue and a disk that a test fills."""

    def __init__(self) -> None:
        self.queued = {"demo": 0}
        self.free_bytes = 100
        self.is_away = False

    async def depth(self) -> Mapping[str, int]:
        if self.is_away:
            raise StoreUnavailable("the store refused")
        return dict(self.queued)

    def free(self) -> int:
        if self.is_away:
            raise OSError("no such folder")
        return self.free_bytes

    def pressure(self) -> Pressure:
        return Pressure(self.depth, self.free, max_queued=10, min_free_disk_bytes=100)


async def test_the_last_place_in_the_queue_is_given_away_once() -> None:
    machine = Machine()
    machine.queued = {"demo": 5, "other": 4}
    pressure = machine.pressure()
    await pressure.look()

    pressure.check()

    with pytest.raises(Overloaded, match="10 tasks are queued") as caught:
        pressure.check()
    assert caught.value.retry_after_s == QUEUE_RETRY_S


async def test_several_are_let_in_together_or_not_at_all() -> None:
    pressure = Machine().pressure()
    await pressure.look()
    pressure.check(8)

    with pytest.raises(Overloaded):
        pressure.check(3)

    pressure.check(2)


async def test_what_was_let_in_is_counted_once_when_the_queue_is_looked_at() -> None:
    machine = Machine()
    pressure = machine.pressure()
    await pressure.look()
    pressure.check(9)
    machine.queued = {"demo": 9}

    await pressure.look()

    pressure.check()
    with pytest.raises(Overloaded):
        pressure.check()


async def test_a_disk_below_what_is_kept_refuses() -> None:
    machine = Machine()
    pressure = machine.pressure()
    machine.free_bytes = 99
    await pressure.look()

    with pytest.raises(Overloaded, match="99 bytes left, and 100 are kept") as caught:
        pressure.check()

    assert caught.value.retry_after_s == DISK_RETRY_S
    machine.free_bytes = 100
    await pressure.look()
    pressure.check()


async def test_what_cannot_be_looked_at_stays_as_it_was() -> None:
    machine = Machine()
    machine.queued = {"demo": 10}
    pressure = machine.pressure()
    await pressure.look()
    machine.queued, machine.is_away = {"demo": 0}, True

    await pressure.look()

    with pytest.raises(Overloaded):
        pressure.check()
