"""The only place that reads the time; tests turn a manual clock instead.

Two readings: the wall clock, for moments that are stored or shown, and a monotonic clock, for
durations inside one process.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Tells the time."""

    def now(self) -> float:
        """Seconds since the Unix epoch, UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds since some moment; never goes back."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


class SteadyClock:
    """Another clock's time, carried on by that clock's monotonic reading.

    When the machine's clock is set, this one goes on as if nothing had happened, until whoever
    owns it sets it too (:mod:`scheduler.reconciliation.clocks`): so that nothing is judged by a
    moment that has jumped before what depends on it was put right.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._base_s = clock.now() - clock.monotonic()

    def now(self) -> float:
        return self._base_s + self._clock.monotonic()

    def monotonic(self) -> float:
        return self._clock.monotonic()

    def machine_now(self) -> float:
        """What the machine's clock says."""
        return self._clock.now()

    def set(self, now: float) -> None:
        """It is ``now``."""
        self._base_s = now - self._clock.monotonic()


class ManualClock:
    """A clock that stands until it is turned, for tests and simulation."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self._now = now

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Turn the clock forward by ``seconds``; a negative number raises ValueError."""
        if seconds < 0:
            raise ValueError(f"cannot turn a clock back by {-seconds} s")
        self._now += seconds
