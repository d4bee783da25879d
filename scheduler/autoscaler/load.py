"""Measures how much work comes for a model, from looks at what the store has of it.

What was served and what is still to do grow together by what comes, whoever serves it and however
often this process is started: so a mean over the last minutes needs two looks at the store, and no
counting of requests. Estimates are bounds from above; they count by the part of them that finished
tasks have used, the same part at both ends, or a change of it would look like work.

Moments are handed in.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from scheduler.scaling import ModelLoad

#: Least seconds over which is measured; a start, if that is longer: what comes within it matters.
WINDOW_S: Final = 60.0
#: Seconds that have to be seen before anything is said.
LEAST_S: Final = 15.0


class LoadMeter:
    """Looks at one model's work."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, ModelLoad]] = deque()

    def __repr__(self) -> str:
        return f"<LoadMeter looks={len(self._looks)}>"

    def note(self, now: float, load: ModelLoad, start_s: float) -> None:
        """The store was looked at; ``start_s``: what a replica takes to start."""
        if self._looks and (now < self._looks[-1][0] or load.served_cost < self._oldest_served()):
            # The clock was set back, or flows are gone: what was seen before tells nothing.
            self._looks.clear()
        self._looks.append((now, load))
        oldest = now - max(WINDOW_S, start_s)
        while len(self._looks) > 2 and self._looks[1][0] <= oldest:
            self._looks.popleft()

    def arriving(self, used_ratio: float | None) -> float | None:
        """Cost that came in a second; None: seen for too short a time, or, without a
        ``used_ratio``, something came and nobody knows what it is worth."""
        if not self._looks:
            return None
        (began_at, first), (ended_at, last) = self._looks[0], self._looks[-1]
        if ended_at - began_at < LEAST_S:
            return None
        ratio = 1.0 if used_ratio is None else used_ratio
        grown = max(0.0, _accepted(last, ratio) - _accepted(first, ratio))
        if grown and used_ratio is None:
            return None
        return grown / (ended_at - began_at)

    def was_busy(self) -> bool:
        """Whether any work was done between the last two looks."""
        if len(self._looks) < 2:
            return False
        return self._looks[-1][1].served_cost > self._looks[-2][1].served_cost

    def _oldest_served(self) -> float:
        return self._looks[0][1].served_cost


def left_of(load: ModelLoad, used_ratio: float) -> float:
    """What running work is expected to cost yet."""
    return max(0.0, load.running_cost * used_ratio - load.running_done)


def _accepted(load: ModelLoad, used_ratio: float) -> float:
    return load.served_cost + load.all_queued_cost * used_ratio + left_of(load, used_ratio)
