"""Measures what the pipeline does: each stage's time for a step, and the bubble.

It is told when a step is issued and when a stage has done one, with the moments, and adds up over
the time in which steps were in flight: a pipeline that has nothing to do has no bubble. What it
reports can be set beside the theory in ``bubble``: the same lanes over stages of the same times.

Times are compared at one number of rows, since a step of more rows takes longer. It reads no
clock, and decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from handlers.pipeline import bubble

#: How far one step moves a smoothed time; the last twenty or so count.
_WEIGHT: Final = 0.1
#: A step counts as at most so many times the smoothed time: a pause is no new speed.
_CLIP: Final = 3.0
#: Steps of a number of rows that a stage must have done before its time means something.
_FEWEST: Final = 5


@dataclass(frozen=True, slots=True)
class StageTimes:
    """What a decode step takes, by stage."""

    rows: int
    #: Smoothed, of each stage.
    seconds: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Measured:
    """What happened in an interval, counting the time in which steps were in flight."""

    #: Seconds with work.
    work_s: float
    #: Seconds each stage computed.
    busy_s: tuple[float, ...]
    #: Steps in flight on average.
    num_lanes: float
    #: Steps that left the last stage.
    num_steps: int

    @property
    def idle_share(self) -> float:
        """The measured bubble, 0 to 1."""
        return 1.0 - sum(self.busy_s) / (len(self.busy_s) * self.work_s) if self.work_s else 0.0

    @property
    def theory(self) -> float:
        """The bubble of as many lanes over stages that are as busy, without links."""
        return bubble.idle_share(self.busy_s, max(1.0, self.num_lanes)) if self.num_steps else 0.0

    @property
    def gap(self) -> float:
        """What links, messages, uneven steps and lanes that ran dry add to the theory."""
        return self.idle_share - self.theory

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for the status of a replica."""
        return {
            "work_s": self.work_s,
            "busy_s": list(self.busy_s),
            "num_lanes": self.num_lanes,
            "num_steps": self.num_steps,
            "idle_share": self.idle_share,
            "theory": self.theory,
        }


@dataclass(slots=True)
class _Step:
    """A step that not all stages have told of."""

    #: 0 for a step that is not only decode.
    rows: int
    #: Stages that have not told of it; their messages do not come in order.
    num_due: int


@dataclass(slots=True)
class _Smoothed:
    """A time that follows what is seen, slowly."""

    seconds: float = 0.0
    count: int = 0

    def add(self, seconds: float) -> None:
        if self.count == 0:
            self.seconds = seconds
        elif self.count < _FEWEST:
            # The first steps of a shape may have compiled something; none is too fast.
            self.seconds = min(self.seconds, seconds)
        else:
            self.seconds += _WEIGHT * (min(seconds, _CLIP * self.seconds) - self.seconds)
        self.count += 1


class Meter:
    """The account of one epoch: begin anew when stages are lost or cut anew."""

    def __init__(self, num_stages: int) -> None:
        self._num_stages = num_stages
        self._steps: dict[int, _Step] = {}
        #: Steps that have not left the last stage.
        self._in_flight: set[int] = set()
        self._decode: dict[int, list[_Smoothed]] = {}
        self._rows_lately: dict[int, float] = {}
        self._since: float | None = None
        self._begin()

    def __repr__(self) -> str:
        return f"<Meter in_flight={len(self._in_flight)} bubble={self.measured().idle_share:.0%}>"

    def issued(self, number: int, rows: int, width: int, at: float) -> None:
        """A step was sent to the stages.

        Args:
            rows: that bring tokens.
            width: tokens of the widest row; more than 1 is prefill.
            at: seconds on any clock that does not run back.
        """
        self._pass(at)
        self._steps[number] = _Step(rows if width == 1 else 0, self._num_stages)
        self._in_flight.add(number)

    def done(self, number: int, stage: int, seconds: float, at: float) -> None:
        """A stage has done a step, which took it ``seconds``."""
        if (step := self._steps.get(number)) is None:
            return
        self._pass(at)
        self._busy_s[stage] += seconds
        if step.rows:
            smoothed = self._decode.setdefault(step.rows, [_Smoothed() for _ in self._busy_s])
            smoothed[stage].add(seconds)
        step.num_due -= 1
        if not step.num_due:
            del self._steps[number]
        if stage == self._num_stages - 1:
            self._in_flight.discard(number)
            self._num_steps += 1
            self._note(step.rows)

    def measured(self) -> Measured:
        """What happened since the last :meth:`take`."""
        lanes = self._lane_s / self._work_s if self._work_s else 0.0
        return Measured(self._work_s, tuple(self._busy_s), lanes, self._num_steps)

    def take(self) -> Measured:
        """What happened since the last call; the next interval begins."""
        measured = self.measured()
        self._begin()
        return measured

    def stage_times(self) -> StageTimes | None:
        """Decode times at the number of rows that steps lately had most often.

        Returns:
            None until every stage has done a few steps of that many rows.
        """
        if not self._rows_lately:
            return None
        rows = max(self._rows_lately, key=lambda each: self._rows_lately[each])
        smoothed = self._decode[rows]
        if min(each.count for each in smoothed) < _FEWEST:
            return None
        return StageTimes(rows, tuple(each.seconds for each in smoothed))

    def _begin(self) -> None:
        self._work_s = self._lane_s = 0.0
        self._busy_s = [0.0] * self._num_stages
        self._num_steps = 0

    def _pass(self, at: float) -> None:
        """Account for the time since the last event."""
        if self._since is not None and self._in_flight:
            passed = max(0.0, at - self._since)
            self._work_s += passed
            self._lane_s += passed * len(self._in_flight)
        self._since = at

    def _note(self, rows: int) -> None:
        if not rows:
            return
        for each in self._rows_lately:
            self._rows_lately[each] *= 1 - _WEIGHT
        self._rows_lately[rows] = self._rows_lately.get(rows, 0.0) + _WEIGHT
