"""Finds the best way to cut a row of layers into contiguous stages.

Dynamic programming over (stages used, layers given away), in passes: first the least time of the
slowest stage, then, among the cuts that reach it, the least share of memory, then the least sum
of squared times, so that the stages that do not set the pace are even too. It knows times and
sizes as functions and nothing of models.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from math import inf
from typing import Final

from handlers.pipeline.part_costs import Cut

#: What a stage of an index would cost if it ran the layers from (included) to (excluded).
CostOf = Callable[[int, int, int], float]

#: Times that differ by less are the same: a sum of floats depends on its order.
_SAME: Final = 1.0 + 1e-9


def cut(
    num_layers: int,
    num_stages: int,
    time: CostOf,
    memory: CostOf,
    limits: Sequence[float],
    tolerance: float,
) -> list[Cut] | None:
    """The cut with the fastest slowest stage.

    The cuts into equal numbers of layers, give or take one, are preferred when none is faster by
    more than ``tolerance``.

    Returns:
        None when no cut keeps ``memory`` within the stages' ``limits``.
    """

    def fitting(stage: int, start: int, end: int) -> float:
        is_too_large = memory(stage, start, end) > limits[stage]
        return inf if is_too_large else time(stage, start, end)

    fewest = num_layers // num_stages

    def even(stage: int, start: int, end: int) -> float:
        return fitting(stage, start, end) if end - start in (fewest, fewest + 1) else inf

    slowest = _least(num_layers, num_stages, fitting, max)[0]
    if slowest == inf:
        return None
    slowest_even = _least(num_layers, num_stages, even, max)[0]
    is_even = slowest_even <= slowest * (1 + tolerance) * _SAME
    return _among(
        num_layers,
        num_stages,
        even if is_even else fitting,
        (slowest_even if is_even else slowest) * _SAME,
        lambda stage, start, end: memory(stage, start, end) / _unit(limits[stage]),
    )


def least_excess(
    num_layers: int, num_stages: int, memory: CostOf, limits: Sequence[float]
) -> float:
    """By how much the fullest stage exceeds its limit, in the cut where that is least."""

    def excess(stage: int, start: int, end: int) -> float:
        return max(0.0, memory(stage, start, end) - limits[stage])

    return _least(num_layers, num_stages, excess, max)[0]


def _unit(limit: float) -> float:
    """What memory is counted in: the stage's own, or bytes where it has no limit."""
    return limit if 0 < limit < inf else 1.0


def _among(
    num_layers: int, num_stages: int, time: CostOf, slowest: float, share: CostOf
) -> list[Cut]:
    """Of the cuts without a stage slower than ``slowest``, the leanest, then the most even."""

    def share_if_fast(stage: int, start: int, end: int) -> float:
        return share(stage, start, end) if time(stage, start, end) <= slowest else inf

    fullest = _least(num_layers, num_stages, share_if_fast, max)[0] * _SAME

    def square_if_lean(stage: int, start: int, end: int) -> float:
        is_lean = share_if_fast(stage, start, end) <= fullest
        return time(stage, start, end) ** 2 if is_lean else inf

    return _least(num_layers, num_stages, square_if_lean, operator.add)[1]


def _least(
    num_layers: int,
    num_stages: int,
    cost: CostOf,
    join: Callable[[float, float], float],
) -> tuple[float, list[Cut]]:
    """The least cost of all stages joined, and a cut that has it."""
    # least[k][end]: of the best way to let the first k stages run the layers before `end`.
    least = [[inf] * (num_layers + 1) for _ in range(num_stages + 1)]
    start_of = [[0] * (num_layers + 1) for _ in range(num_stages + 1)]
    least[0][0] = 0.0
    for stage in range(num_stages):
        for end in range(stage + 1, num_layers - (num_stages - stage - 1) + 1):
            for start in range(stage, end):
                before = least[stage][start]
                if (
                    before < inf
                    and (candidate := join(before, cost(stage, start, end))) < least[stage + 1][end]
                ):
                    least[stage + 1][end], start_of[stage + 1][end] = candidate, start
    cuts: list[Cut] = []
    end = num_layers
    for stage in range(num_stages, 0, -1):
        cuts.append((start_of[stage][end], end))
        end = start_of[stage][end]
    return least[num_stages][num_layers], cuts[::-1]
