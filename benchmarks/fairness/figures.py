"""What is read from the answers: waits of the light tenant, and the rate of all tokens. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.fairness.load import LIGHT, Answer


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one way reached."""

    #: Times to first token of the light tenant alone, and beside the flood.
    quiet_s: list[float]
    flooded_s: list[float]
    #: Light requests beside the flood that got no token at all before the end.
    num_unanswered: int
    #: Tokens a second of both tenants while the flood lasted.
    tokens_per_s: float

    @property
    def ratio(self) -> float:
        """How many times as long as alone the light tenant waits, at the 99th percentile."""
        return percentile(self.flooded_s, 0.99) / percentile(self.quiet_s, 0.99)


def read(answers: Sequence[Answer], quiet_until_s: float, from_s: float, until_s: float) -> Outcome:
    """``from_s`` to ``until_s``: the time in which the flood is at its height."""
    light = [answer for answer in answers if answer.tenant == LIGHT]
    flooded = [answer for answer in light if from_s <= answer.sent_s < until_s]
    tokens = sum(
        count
        for answer in answers
        for moment, count in answer.arrivals
        if from_s <= moment < until_s
    )
    unanswered = [answer for answer in flooded if answer.ttft_s is None]
    return Outcome(
        _waits([answer for answer in light if answer.sent_s < quiet_until_s], until_s),
        _waits(flooded, until_s),
        len(unanswered),
        tokens / (until_s - from_s),
    )


def _waits(answers: Sequence[Answer], until_s: float) -> list[float]:
    """Times to first token; who got none has waited to the end at least."""
    return [until_s - a.sent_s if a.ttft_s is None else a.ttft_s for a in answers]


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that ``share`` of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
