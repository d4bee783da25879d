"""What is read from the ledger's rows and from measured times. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.engine.figures import NOISE_TOLERANCE, percentile
from benchmarks.queue.ledger import Row

#: The step of size that growth is told for.
FACTOR = 100.0


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds from submitting a task to its beginning."""

    median_s: float
    p99_s: float
    #: Tasks that never began.
    num_missing: int


def quiet(noise_ratios: Sequence[float]) -> list[int]:
    """Which repetitions count: those about as quiet as the quietest."""
    limit = min(noise_ratios, default=0.0) + NOISE_TOLERANCE
    return [index for index, ratio in enumerate(noise_ratios) if ratio <= limit]


def drain_rate(rows: Sequence[Row]) -> float:
    """Tasks a second from the first beginning to the last; 0 when fewer than two began."""
    moments = [row.begun_at for row in rows if row.begun_at is not None]
    if len(moments) < 2:
        return 0.0
    return (len(moments) - 1) / (max(moments) - min(moments))


def latency(rows: Sequence[Row]) -> Latency | None:
    """None when no task began."""
    waits = [
        row.begun_at - row.submitted_at
        for row in rows
        if row.begun_at is not None and row.submitted_at is not None
    ]
    if not waits:
        return None
    return Latency(statistics.median(waits), percentile(waits, 0.99), len(rows) - len(waits))


def num_done_within(rows: Sequence[Row], since_at: float, within_s: float) -> int:
    """Tasks that were done at most so long after a moment; those done before it count too."""
    return sum(row.done_at is not None and row.done_at <= since_at + within_s for row in rows)


def growth(before: tuple[float, float], after: tuple[float, float]) -> float:
    """How much (size, time) grows by for each factor of 100 in size."""
    num_factors = math.log(after[0] / before[0], FACTOR)
    return float((after[1] / before[1]) ** (1.0 / num_factors))


def best(rates: Mapping[str, float]) -> tuple[str, float] | None:
    """The fastest, by name; None when there is nobody."""
    if not rates:
        return None
    name = max(rates, key=lambda each: rates[each])
    return name, rates[name]
