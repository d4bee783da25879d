"""How many requests come when: the load shapes, and the requests drawn from them.

``steps`` is the shape of AIBrix's autoscaling figures: 1, 4, 8, 10, 2 and 6 requests a second, five
minutes each. The others are those that Plait's scaling was designed with: a step, a spike, a day in
two and a half hours, on and off by the minute, and quiet then busy.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

#: Tokens of an answer, in the mean, and how its length is spread (of a log-normal distribution).
MEAN_COST: Final = 300.0
SPREAD: Final = 0.7
MAX_COST: Final = 2000.0

STEPS: Final = (1, 4, 8, 10, 2, 6)
STEP_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Request:
    at: float
    #: What it will cost, in weighted tokens, and what is known of that beforehand: a bound.
    cost: float
    estimate: float


@dataclass(frozen=True, slots=True)
class Trace:
    name: str
    seconds: float
    #: Requests a second at a moment.
    rate: Callable[[float], float]
    peak: float


TRACES: Final = (
    Trace("steps", STEP_S * len(STEPS), lambda t: STEPS[min(int(t / STEP_S), 5)], 10),
    Trace("step", 9000, lambda t: 8 if 3000 <= t < 6000 else 2, 8),
    Trace("spike", 9000, lambda t: 15 if t % 3000 >= 2880 else 2, 15),
    Trace("diurnal", 9000, lambda t: 5 - 4 * math.cos(2 * math.pi * t / 9000), 9),
    Trace("on-off", 9000, lambda t: 8 if t % 120 < 60 else 0.5, 8),
    Trace("quiet then busy", 9000, lambda t: 0.1 if t < 4500 else 4, 4),
)


def requests(trace: Trace, seed: int) -> Iterator[Request]:
    """A Poisson stream whose rate follows the trace, by thinning."""
    draw = random.Random(f"{trace.name} {seed}")
    mean = math.log(MEAN_COST) - SPREAD**2 / 2
    at = 0.0
    while (at := at + draw.expovariate(trace.peak)) < trace.seconds:
        kept = draw.random() < trace.rate(at) / trace.peak
        cost = min(draw.lognormvariate(mean, SPREAD), MAX_COST)
        slack = draw.uniform(1.0, 3.0)
        if kept:
            yield Request(at, cost, min(cost * slack, MAX_COST * 1.5))
