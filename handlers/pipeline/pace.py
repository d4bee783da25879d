"""Decides how many tokens a prefill step has.

Beside sequences that decode, as many as keep their gap short: a decode step behind a prefill step
goes no faster than that one through all stages. With nobody waiting for a token, as many as get
the prompts through all stages soonest: the stages work on consecutive chunks at once, and few
large chunks leave some of them idle, many small ones cost the weights more often (the fill and
drain of GPipe, arXiv 1811.06965).

Beside decoding it starts small, and doubles at most what was observed, until it knows better.
"""

from __future__ import annotations

from typing import Final

from handlers.pipeline.costs import TokenTimes
from handlers.pipeline.step import BLOCK

_NARROWEST: Final = 16
#: What the first steps have beside decoding.
_FIRST: Final = 32
#: A prompt is cut into at most so many chunks for each stage, whatever a fit says of small ones.
_CHUNKS_PER_STAGE: Final = 4


class Pace:
    """The prefill steps of one pipeline."""

    def __init__(self, num_stages: int, chunk: int, gap_factor: float) -> None:
        """``chunk``: most tokens of a step. ``gap_factor``: most of a decode cycle it may take."""
        self._chunk, self._gap_factor = chunk, gap_factor
        self._num_stages = num_stages
        powers = [_NARROWEST << power for power in range(chunk.bit_length())]
        halves = sorted([*powers, *(power + power // 2 for power in powers)])
        self._budgets = [budget for budget in halves if budget < chunk] + [chunk]
        self.forget()

    def forget(self) -> None:
        """Begin anew: the stages are others than those observed."""
        self._times = [TokenTimes() for _ in range(self._num_stages)]

    def __repr__(self) -> str:
        return f"<Pace {self.predict_s(self._chunk, self._chunk)} s for {self._chunk} tokens>"

    def observe(self, stage: int, num_tokens: int, window: int, seconds: float) -> None:
        """A stage took so long for a prefill step, padding counted as tokens."""
        self._times[stage].observe(num_tokens, window, seconds)

    def predict_s(self, num_tokens: int, window: int) -> float | None:
        """Seconds of the slowest stage; None until every stage was observed."""
        seconds = [each.predict(num_tokens, window) for each in self._times]
        known = [each for each in seconds if each is not None]
        return max(known) if len(known) == len(seconds) else None

    def beside(self, cycle_s: float | None, start: int, num_steps: int = 1) -> int:
        """Tokens for a step while others decode, which takes ``cycle_s`` for a token of each.

        ``start``: position of its first token. ``cycle_s`` None: not known. ``num_steps``: as many
        such steps may go through the stages between two tokens.
        """
        seen = min(each.largest for each in self._times)
        if cycle_s is None or not seen:
            return min(_FIRST, self._chunk)
        # A quiet gap is a way through all stages, too; of that, what remains beside the prefill
        # step's is the decode step's last stage, and one it may have to wait for at the first.
        spared = 1 - min(1.0, 2 / self._num_stages)
        limit_s = (self._gap_factor + spared) * cycle_s
        fitting = [
            budget
            for budget in self._budgets
            if budget <= 2 * max(seen, _NARROWEST)
            and self._adds_s(budget, _window(start, budget), num_steps) <= limit_s
        ]
        return max(fitting, default=self._budgets[0])

    def _adds_s(self, num_tokens: int, window: int, num_steps: int) -> float:
        """What the steps add to a gap at most, given how they differed from the fit.

        A decode step behind them goes no faster than they do: it follows the last one through all
        stages, and that one the others.
        """
        seconds = [
            (stage.predict(num_tokens, window) or 0.0) * (1 + 2 * stage.spread)
            for stage in self._times
        ]
        return sum(seconds) + (num_steps - 1) * max(seconds)

    def fill(self, num_tokens: int, start: int) -> int:
        """Tokens for a step while nobody decodes and so many are to be computed in all."""
        num_stages = self._num_stages
        if num_stages == 1:
            return self._chunk
        least = num_tokens / (_CHUNKS_PER_STAGE * num_stages)
        enough = [each for each in self._budgets if each >= max(least, min(BLOCK, self._chunk))]
        if self.predict_s(1, BLOCK) is None:
            halves = num_tokens / (2 * num_stages)
            return next((each for each in enough if each >= halves), self._chunk)

        def through_s(budget: int) -> float:
            chunk_s = self.predict_s(budget, _window(start, budget)) or 0.0
            return (-(-num_tokens // budget) + num_stages - 1) * chunk_s

        return min(reversed(enough), key=through_s, default=self._chunk)


def _window(start: int, budget: int) -> int:
    return -(-(start + budget) // BLOCK) * BLOCK
