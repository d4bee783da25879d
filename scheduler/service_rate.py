"""How fast a model is served: cost per second of one slot, measured over the last minutes.

Whoever knows says what was served, and how many slots were busy at the end of each period. Periods
in which every slot was busy tell how fast a waiting task is served, for that is when tasks wait; if
there are none, those with any work have to do. A period in which nothing was served counts as well,
as long as slots were busy: that is a slow model, not an idle one.

It reads no clock: moments are handed in.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

#: Seconds over which is measured.
WINDOW_S = 300.0
#: Least length of a period, in seconds.
PERIOD_S = 1.0
#: Seconds with work that have to have been seen before anything is said.
LEAST_S = 2.0


@dataclass(frozen=True, slots=True)
class Rate:
    """What was measured."""

    #: Weighted tokens that one busy slot is served in a second.
    per_slot: float
    #: Seconds this was measured for.
    measured_s: float
    #: Whether every slot was busy meanwhile; when not, each is served faster than it will be then.
    was_full: bool
    #: Cost of tasks that succeeded, as a part of what was estimated.
    used_ratio: float = 1.0
    #: Whether any has succeeded, so that this is known.
    has_ended: bool = False


@dataclass(frozen=True, slots=True)
class _Period:
    ended_at: float
    length_s: float
    served: int
    busy: int
    is_full: bool
    used: int
    estimated: int


class RateMeter:
    """Measures one model."""

    def __init__(self) -> None:
        self._periods: deque[_Period] = deque()
        self._began_at: float | None = None
        self._served = self._used = self._estimated = 0
        self._was_full = False

    def __repr__(self) -> str:
        return f"<RateMeter periods={len(self._periods)}>"

    def served(self, cost: int) -> None:
        """Work was done."""
        self._served += cost

    def ended(self, used: int, estimated: int) -> None:
        """A task succeeded that used so much of what it was estimated to cost."""
        self._used += used
        self._estimated += estimated

    def is_due(self, now: float) -> bool:
        """Whether a period may end now; the first call begins one."""
        if self._began_at is None:
            self._began_at = now
        return now - self._began_at >= PERIOD_S

    def end_period(self, now: float, busy: int, capacity: int) -> None:
        """A period ends with so many slots busy of so many."""
        assert self._began_at is not None
        is_full = busy >= capacity > 0
        self._periods.append(
            _Period(
                now,
                now - self._began_at,
                self._served,
                busy,
                # A period that begins with room shows less than a full one would.
                is_full and self._was_full,
                self._used,
                self._estimated,
            )
        )
        self._served = self._used = self._estimated = 0
        self._began_at, self._was_full = now, is_full
        self._forget(now)

    def rate(self, now: float) -> Rate | None:
        """What was measured; None: too little."""
        self._forget(now)
        estimated = sum(period.estimated for period in self._periods)
        used = sum(period.used for period in self._periods)
        ratio = used / estimated if estimated else 1.0
        for full in (True, False):
            periods = [p for p in self._periods if p.busy and (p.is_full or not full)]
            measured_s = sum(period.length_s for period in periods)
            slot_s = sum(period.length_s * period.busy for period in periods)
            served = sum(period.served for period in periods)
            if measured_s >= LEAST_S and served:
                return Rate(served / slot_s, measured_s, full, ratio, bool(estimated))
        return None

    def _forget(self, now: float) -> None:
        while self._periods and self._periods[0].ended_at < now - WINDOW_S:
            self._periods.popleft()
