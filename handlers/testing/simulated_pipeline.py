"""A pipeline in simulated time: lanes that go through stages one after another.

It stands for stages and driver where a test asks what a meter makes of known times.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

from handlers.pipeline.meter import Meter

#: Seconds of a stage for one step.
TimeOf = Callable[[int], float]


class SimulatedPipeline:
    """Stages that take what they are said to take, and a clock."""

    def __init__(
        self, time_of: TimeOf, num_stages: int, num_lanes: int, link_s: float = 0.0
    ) -> None:
        """``link_s``: on the way from the first stage to the second."""
        self.time_of = time_of
        self.now = 0.0
        self._num_stages, self._num_lanes, self._link_s = num_stages, num_lanes, link_s
        self._numbers = itertools.count()

    def run(self, meter: Meter, num_steps: int, rows: int = 4) -> None:
        """Let so many decode steps through, and tell the meter of each."""
        free_at = [self.now] * self._num_stages
        number_of = [0] * self._num_lanes
        # What happens next: (when, in which order, lane, stage, seconds it took; 0: it arrives).
        events = [(self.now, lane, lane, 0, 0.0) for lane in range(self._num_lanes)]
        num_left = num_steps
        while events:
            self.now, order, lane, stage, took = heapq.heappop(events)
            if took:
                meter.done(number_of[lane], stage, took, self.now)
                stage = (stage + 1) % self._num_stages
                arrives = self.now + (self._link_s if stage == 1 else 0.0)
                heapq.heappush(events, (arrives, order, lane, stage, 0.0))
                continue
            if stage == 0:
                if not num_left:
                    continue
                num_left -= 1
                number_of[lane] = next(self._numbers)
                meter.issued(number_of[lane], rows, 1, self.now)
            seconds = self.time_of(stage)
            free_at[stage] = max(self.now, free_at[stage]) + seconds
            heapq.heappush(events, (free_at[stage], order, lane, stage, seconds))
