"""Decides when the stages should be cut anew, because they are no longer as fast as they were.

A device slows down, a neighbour moves in or leaves. The ratio of what a stage's steps take to
what its profile says is how much slower its device has become; with the profiles scaled by these
ratios the planner is asked again. A new cut costs every open request a pause, so it must be
*clearly* better: faster by ``min_gain``, every time it is looked for ``patience`` times running,
and not within ``cool_down`` looks of the last cut. Ratios always refer to the profiles, never to
the last look, so what slowed down and recovers leads back to the first cut.

It reads no clock: a look is whatever the caller makes one, at even distances and with work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from handlers.pipeline import partition
from handlers.pipeline.meter import StageTimes
from handlers.pipeline.partition import TOLERANCE, Device, Plan

#: How much faster the slowest stage must become.
MIN_GAIN: Final = 0.15
#: Looks in a row that must find it so.
PATIENCE: Final = 10
#: Looks after a new cut in which there is no other.
COOL_DOWN: Final = 60
#: How far one look moves a ratio.
_WEIGHT: Final = 0.3

#: What each stage runs on, at a number of rows, as it was measured when it was started.
DevicesAt = Callable[[int], Sequence[Device]]


class Drift:
    """Watches one replica's stages against their profiles."""

    def __init__(
        self,
        devices_at: DevicesAt,
        plan: Plan,
        *,
        min_gain: float = MIN_GAIN,
        patience: int = PATIENCE,
        cool_down: int = COOL_DOWN,
    ) -> None:
        self._devices_at, self._plan = devices_at, plan
        self._min_gain, self._patience, self._cool_down = min_gain, patience, cool_down
        self._ratios: list[float] | None = None
        self._num_better = 0
        self._num_to_wait = 0

    def __repr__(self) -> str:
        ratios = [f"{ratio:.2f}" for ratio in self.ratios]
        return f"<Drift layers={self._plan.counts} ratios={ratios} better={self._num_better}>"

    @property
    def plan(self) -> Plan:
        """The plan that the stages follow."""
        return self._plan

    @property
    def ratios(self) -> tuple[float, ...]:
        """How many times as long as its profile says each stage takes, smoothed."""
        return tuple(self._ratios or [1.0] * len(self._plan.stages))

    def look(self, times: StageTimes | None) -> Plan | None:
        """Take what the stages' steps take by now.

        Returns:
            A plan that is clearly better, which the stages are taken to follow from now on; None:
            leave everything as it is.
        """
        self._num_to_wait = max(0, self._num_to_wait - 1)
        if times is None:
            return None
        self._smooth(times)
        better = self._better()
        self._num_better = 0 if better is None else self._num_better + 1
        if better is None or self._num_better < self._patience or self._num_to_wait:
            return None
        self._plan = better
        self._num_better, self._num_to_wait = 0, self._cool_down
        return better

    def _smooth(self, times: StageTimes) -> None:
        devices = self._devices_at(times.rows)
        seen = [
            seconds / device.costs.seconds_of(cut)
            for seconds, device, cut in zip(times.seconds, devices, self._plan.cuts, strict=True)
        ]
        before = self._ratios or seen
        self._ratios = [old + _WEIGHT * (new - old) for old, new in zip(before, seen, strict=True)]

    def _better(self) -> Plan | None:
        """A cut that is faster by enough with the devices as they are now."""
        devices = [
            replace(device, costs=device.costs.scaled(ratio))
            for device, ratio in zip(self._devices_at(self._plan.rows), self.ratios, strict=True)
        ]
        now = [
            device.costs.seconds_of(cut)
            for device, cut in zip(devices, self._plan.cuts, strict=True)
        ]
        # In any other cut some stage runs at least the layers it has now, so none makes the
        # slowest faster than the fastest is. Planning takes a while, and steady stages need none.
        if max(now) <= min(now) * (1 + self._min_gain):
            return None
        try:
            best = partition.plan(
                devices,
                rows=self._plan.rows,
                num_lanes=self._plan.num_lanes,
                num_blocks=self._plan.num_blocks,
                latency_s=self._plan.latency_s,
                tolerance=TOLERANCE,
            )
        except ValueError:
            # By the profiles nothing fits, but what the stages hold does: leave it.
            return None
        is_better = best.cuts != self._plan.cuts and max(now) > best.slowest_s * (
            1 + self._min_gain
        )
        return best if is_better else None
