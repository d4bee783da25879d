"""Decides how many decode steps are in flight at once: the *lanes*.

With M lanes, D rows that decode make steps of about r = D / M rows. If stage i takes t_i(r) for
one, every row gets a token once in

    max(M * max_i t_i(r), sum_i t_i(r) + links)

seconds: either the slowest stage works without a break, or a step's way through all of them and
back takes longer. More lanes keep more stages at work; fewer read the weights less often. The
number with the shortest cycle is taken, and of those that differ by little the least.

Where stages share cores or memory, t_i depends on M as well, so times are kept by M, and numbers
next to the best are tried: for a few steps, and half as often each time nothing comes of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from handlers.pipeline.costs import RowTimes

#: A cycle within this of the shortest is as good.
_AS_GOOD: Final = 1.03
#: Idle time that more lanes might use, from which they are tried.
_WORTH_A_TRIAL: Final = 1.1
#: Most lanes for each stage; more than one hides links that are slower than stages.
_LANES_PER_STAGE: Final = 8
#: Steps of a trial, and steps from one to the next, at first and at most.
_TRIAL_STEPS: Final = 8
_FIRST_PAUSE, _LONGEST_PAUSE = 64, 4096
#: Steps after which the choice is made anew.
_CHOICE_STEPS: Final = 32
#: How fast the shortest way through the links is forgotten.
_LINK_WEIGHT: Final = 0.02


@dataclass(slots=True)
class _Trial:
    lanes: int
    num_left: int
    #: Step at which it ends anyway.
    end: int


class LaneModel:
    """How many lanes to make of the rows that decode."""

    def __init__(self, num_stages: int, fixed: int | None = None) -> None:
        """``fixed``: so many, whatever is observed; None: what the observed times make best."""
        self._num_stages, self._fixed = num_stages, fixed
        self.forget()

    def forget(self) -> None:
        """Begin anew: the stages are others than those observed."""
        self._times = [RowTimes() for _ in range(self._num_stages)]
        self._links_s = 0.0
        self._num_round_trips = self._num_steps = 0
        self._choices: dict[int, int] = {}
        self._trial: _Trial | None = None
        self._next_trial, self._pause = _FIRST_PAUSE, _FIRST_PAUSE
        #: When a number of lanes was last tried.
        self._tried: dict[int, int] = {}
        #: Rows asked for last, and when a trial began last.
        self._num_rows = self._num_rows_tried = 0

    def __repr__(self) -> str:
        return f"<LaneModel stages={self._num_stages} links={self._links_s:.4f} s>"

    def choose(self, num_rows: int) -> int:
        """Lanes for so many rows: at least 1, at most one for each row."""
        if self._fixed is not None:
            return self.default(num_rows)
        self._num_rows = num_rows
        if self._trial is not None and self._trial.lanes <= num_rows:
            return self._trial.lanes
        return self._choice(num_rows)

    def default(self, num_rows: int) -> int:
        """Lanes for so many rows while nothing is known: one for each stage, or those fixed."""
        return max(1, min(self._fixed or self._num_stages, num_rows))

    def cycle_s(self, num_rows: int) -> float | None:
        """Seconds in which each of so many rows gets a token, trials apart; None: not known."""
        return self._cycle_s(self._choice(num_rows), num_rows)

    def observe(self, lanes: int, num_rows: int, stage: int, seconds: float) -> None:
        """A stage took ``seconds`` for a decode step of ``num_rows``, with so many lanes."""
        self._times[stage].observe(lanes, num_rows, seconds)
        if stage == self._num_stages - 1:
            self._count_step(lanes)

    def observe_links(self, seconds: float) -> None:
        """A step spent so long on its way outside of the stages, queues included.

        The shortest such time is that of the links alone.
        """
        self._num_round_trips += 1
        if self._num_round_trips == 1 or seconds < self._links_s:
            self._links_s = max(0.0, seconds)
        else:
            self._links_s += _LINK_WEIGHT * (min(seconds, 2 * self._links_s) - self._links_s)

    def _choice(self, num_rows: int) -> int:
        if self._fixed is not None:
            return self.default(num_rows)
        if num_rows not in self._choices:
            self._choices[num_rows] = self._best(num_rows)
        return self._choices[num_rows]

    def _cycle_s(self, lanes: int, num_rows: int) -> float | None:
        few, num_more = divmod(num_rows, lanes)
        way_s, slowest_s = self._links_s, 0.0
        for stage in self._times:
            less, more = stage.predict(lanes, few), stage.predict(lanes, few + (num_more > 0))
            if less is None or more is None:
                return None
            way_s += more
            slowest_s = max(slowest_s, num_more * more + (lanes - num_more) * less)
        return max(slowest_s, way_s)

    def _best(self, num_rows: int) -> int:
        cycles = {}
        for lanes in range(1, max(1, min(_LANES_PER_STAGE * self._num_stages, num_rows)) + 1):
            if (cycle_s := self._cycle_s(lanes, num_rows)) is None:
                return self.default(num_rows)
            cycles[lanes] = cycle_s
        shortest = min(cycles.values())
        return next(lanes for lanes, each in cycles.items() if each <= _AS_GOOD * shortest)

    def _count_step(self, lanes: int) -> None:
        self._num_steps += 1
        if self._num_steps % _CHOICE_STEPS == 0:
            self._choices.clear()
        if self._trial is None:
            if not self._num_rows / 2 < self._num_rows_tried < self._num_rows * 2:
                # Other rows, other times: what came of earlier trials says little.
                self._next_trial = min(self._next_trial, self._num_steps + _FIRST_PAUSE)
            if self._num_steps >= self._next_trial:
                self._try()
            return
        self._trial.num_left -= lanes == self._trial.lanes
        if self._trial.num_left <= 0 or self._num_steps >= self._trial.end:
            self._end_trial()

    def _try(self) -> None:
        """Begin a trial of a number next to the best, the one that was tried longest ago."""
        best = self._best(self._num_rows)
        self._num_rows_tried = self._num_rows
        self._next_trial = self._num_steps + self._pause
        near = [best - 1, best + 1] if self._leaves_idle(best) else [best - 1]
        near = [lanes for lanes in near if 1 <= lanes <= self._num_rows]
        if near and self._fixed is None:
            lanes = min(near, key=lambda each: self._tried.get(each, -1))
            self._tried[lanes] = self._num_steps
            self._trial = _Trial(lanes, _TRIAL_STEPS, self._num_steps + 4 * _TRIAL_STEPS)

    def _end_trial(self) -> None:
        assert self._trial is not None
        before = self._trial.lanes
        self._trial = None
        self._choices.clear()
        came_of_it = self._best(max(1, self._num_rows)) == before
        self._pause = _FIRST_PAUSE if came_of_it else min(2 * self._pause, _LONGEST_PAUSE)
        self._next_trial = self._num_steps + self._pause

    def _leaves_idle(self, lanes: int) -> bool:
        """Whether the slowest stage has nothing to do for so long that more may help."""
        rows = -(-self._num_rows // lanes)
        seconds = [each.predict(lanes, rows) or 0.0 for each in self._times]
        return sum(seconds) + self._links_s > _WORTH_A_TRIAL * lanes * max(seconds)
