"""What is read from the times of tokens: rates, gaps, and which repetitions count. Pure.

*Decoding* is measured while every job decodes: from the moment the last of them has its first
token until the first of them is done. *End to end* counts all tokens and all of the time,
prompts included.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.engine.contenders.base import Run

#: Repetitions this much noisier than the quietest (share of the machine) do not count.
NOISE_TOLERANCE = 0.02


@dataclass(frozen=True, slots=True)
class Sample:
    """One repetition."""

    run: Run
    #: Share of the machine that others took meanwhile.
    noise_ratio: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one contender reached, from its quietest repetitions."""

    #: Tokens a second while all decode; None when there is no such time.
    decode_rate: float | None
    end_to_end_rate: float
    noise_ratio: float
    #: Between the fastest and the slowest of all repetitions, as share of the median.
    spread_ratio: float
    tokens: list[list[int]]
    #: Share of the time each stage computed; empty where it is not known.
    stage_busy: list[float]

    @property
    def rate(self) -> float:
        """The decoding rate; end to end where there was no moment at which all jobs decoded."""
        return self.end_to_end_rate if self.decode_rate is None else self.decode_rate


def decode_rate(run: Run) -> float | None:
    """Tokens a second while every job decodes."""
    began = max(moments[0] for moments in run.arrivals)
    ended = min(moments[-1] for moments in run.arrivals)
    if ended <= began:
        return None
    num_tokens = sum(began < moment <= ended for each in run.arrivals for moment in each)
    return num_tokens / (ended - began)


def end_to_end_rate(run: Run) -> float:
    """All tokens over all of the time, prompts included."""
    return sum(map(len, run.tokens)) / max(moments[-1] for moments in run.arrivals)


def outcome(samples: Sequence[Sample]) -> Outcome:
    """The medians of the quietest repetitions."""
    quietest = min(sample.noise_ratio for sample in samples)
    kept = [each for each in samples if each.noise_ratio <= quietest + NOISE_TOLERANCE]
    rates = [rate for each in kept if (rate := decode_rate(each.run)) is not None]
    everything = [decode_rate(each.run) or end_to_end_rate(each.run) for each in samples]
    busy = [each.run.stage_busy for each in kept if each.run.stage_busy]
    return Outcome(
        statistics.median(rates) if rates else None,
        statistics.median(end_to_end_rate(each.run) for each in kept),
        max(each.noise_ratio for each in kept),
        (max(everything) - min(everything)) / statistics.median(everything),
        kept[0].run.tokens,
        [statistics.median(shares) for shares in zip(*busy, strict=True)],
    )


def gaps(run: Run, jobs: Sequence[int], since_s: float, until_s: float) -> list[float]:
    """Seconds between two arrivals at the same job that end in the window.

    Tokens that arrive together count as one arrival: a client waited for them once.
    """
    found: list[float] = []
    for job in jobs:
        moments = sorted(set(run.arrivals[job]))
        for before, after in pairwise(moments):
            if since_s < after <= until_s:
                found.append(after - before)
    return found


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that ``share`` of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def num_equal(tokens: Sequence[Sequence[int]], reference: Sequence[Sequence[int]]) -> int:
    """How many jobs got the same tokens, as far as both go."""
    return sum(
        len(mine) > 0 and all(a == b for a, b in zip(mine, theirs, strict=False))
        for mine, theirs in zip(tokens, reference, strict=True)
    )
