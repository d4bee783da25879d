"""How many steps are in flight: the number that a search by brute force finds best."""

from __future__ import annotations

import pytest

from handlers.pipeline.lanes import LaneModel
from handlers.pipeline.schedule import Schedule, Sequence, Shape
from handlers.pipeline.step import Step
from tests.unit.pipeline_simulation import Simulation, Takes


def flat(stage: int, step: Step, num_busy: int) -> float:
    """Reading the weights is all there is to it."""
    return 0.010


def linear(stage: int, step: Step, num_busy: int) -> float:
    """Computing is, as with many rows."""
    return 0.002 * len(step.rows)


def mixed(stage: int, step: Step, num_busy: int) -> float:
    return 0.008 + 0.001 * len(step.rows)


def uneven(stage: int, step: Step, num_busy: int) -> float:
    return (0.002, 0.010, 0.004, 0.004)[stage] + 0.0005 * len(step.rows)


def shared_bandwidth(stage: int, step: Step, num_busy: int) -> float:
    """All stages read their weights from one memory: two at once take twice as long."""
    return 0.010 * (1 + num_busy)


def shared_in_part(stage: int, step: Step, num_busy: int) -> float:
    return (0.004 + 0.002 * len(step.rows)) * (1 + 0.3 * num_busy)


def tiny(stage: int, step: Step, num_busy: int) -> float:
    """Stages are quick and links are slow."""
    return 0.001 + 0.0001 * len(step.rows)


def simulation(
    model: LaneModel, num_stages: int, rows: int, takes: Takes, link_s: float
) -> Simulation:
    schedule = Schedule(Shape(num_stages, rows, 64, 100_000, 10**9), model)
    for index in range(rows):
        schedule.add(Sequence(str(index), 0, [1], 1))
    return Simulation(schedule, num_stages, takes, link_s)


def rate_with(lanes: int, num_stages: int, rows: int, takes: Takes, link_s: float) -> float:
    run = simulation(LaneModel(num_stages, lanes), num_stages, rows, takes, link_s)
    run.run(4 * lanes)
    return run.rate(12 * lanes)


@pytest.mark.parametrize(
    "takes", [flat, linear, mixed, uneven, shared_bandwidth, shared_in_part, tiny]
)
@pytest.mark.parametrize("link_s", [0.0, 0.010])
@pytest.mark.parametrize(("num_stages", "rows"), [(1, 8), (2, 2), (2, 8), (4, 16)])
def test_the_lanes_are_as_good_as_any_fixed_number(
    takes: Takes, link_s: float, num_stages: int, rows: int
) -> None:
    best = max(
        rate_with(lanes, num_stages, rows, takes, link_s)
        for lanes in (1, 2, 3, 4, 6, 8, 12)
        if lanes <= rows
    )

    run = simulation(LaneModel(num_stages), num_stages, rows, takes, link_s)
    run.run(600)

    assert run.rate(400) >= 0.94 * best
