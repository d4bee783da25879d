"""A pipeline in which only time passes: stages work in order, links take a while."""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Callable
from itertools import pairwise

from handlers.pipeline.schedule import Schedule, Sequence
from handlers.pipeline.step import Draw, Step

#: Stage, step, how many other stages are at work when it starts: seconds.
Takes = Callable[[int, Step, int], float]


class Simulation:
    """Runs a schedule's steps; every sequence stays until :meth:`run` ends."""

    def __init__(self, schedule: Schedule, num_stages: int, takes: Takes, link_s: float = 0.0):
        self._schedule, self._takes, self._link_s = schedule, takes, link_s
        self._queues: list[deque[Step]] = [deque() for _ in range(num_stages)]
        self._is_busy = [False] * num_stages
        #: (moment, order, stage it reaches or has done, whether it has, step, seconds it took).
        self._events: list[tuple[float, int, int, bool, Step, float]] = []
        self._num_events = 0
        self._sent_at: dict[int, float] = {}
        self.now = 0.0
        #: When each sequence got its tokens.
        self.grown_at: dict[str, list[float]] = defaultdict(list)
        self.steps: list[Step] = []

    def run(self, num_steps: int) -> None:
        """Go on until so many more steps have gone through all stages."""
        self._issue()
        while num_steps > 0:
            self.now, _, stage, is_done, step, took_s = heapq.heappop(self._events)
            if is_done:
                self._done(stage, step, took_s)
            elif stage < len(self._queues):
                self._queues[stage].append(step)
                self._start(stage)
            else:
                self._result(step)
                num_steps -= 1

    def rate(self, num_steps: int) -> float:
        """Tokens per second during so many more steps."""
        tokens, start = self._num_tokens(), self.now
        self.run(num_steps)
        return (self._num_tokens() - tokens) / (self.now - start)

    def gaps(self, sequence: Sequence) -> list[float]:
        times = self.grown_at[sequence.request_id]
        return [after - before for before, after in pairwise(times)]

    def _num_tokens(self) -> int:
        return sum(map(len, self.grown_at.values()))

    def _issue(self) -> None:
        while (step := self._schedule.issue()) is not None:
            self.steps.append(step)
            self._sent_at[step.number] = self.now
            self._at(self.now + self._link_s, 0, False, step)

    def _start(self, stage: int) -> None:
        if self._is_busy[stage] or not self._queues[stage]:
            return
        step = self._queues[stage].popleft()
        took_s = self._takes(stage, step, sum(self._is_busy))
        self._is_busy[stage] = True
        self._at(self.now + took_s, stage, True, step, took_s)

    def _done(self, stage: int, step: Step, took_s: float) -> None:
        self._is_busy[stage] = False
        self._schedule.observe(step.number, stage, took_s)
        self._at(self.now + self._link_s, stage + 1, False, step)
        self._start(stage)

    def _result(self, step: Step) -> None:
        draws = [Draw(7) if row.is_drawn else None for row in step.rows]
        seconds = self.now - self._sent_at.pop(step.number)
        for sequence, _ in self._schedule.apply(step.number, draws, seconds):
            self.grown_at[sequence.request_id].append(self.now)
        self._issue()

    def _at(self, when: float, stage: int, is_done: bool, step: Step, took_s: float = 0.0) -> None:
        self._num_events += 1
        heapq.heappush(self._events, (when, self._num_events, stage, is_done, step, took_s))
