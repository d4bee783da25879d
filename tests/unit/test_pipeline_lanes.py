"""How many steps are in flight: the number that a search by brute force finds best."""

from __future__ import annotations

import random

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
@pytest.mark.parametrize(("num_stages", "rows"), [(1, 8), (2, 8), (4, 16)])
def test_the_lanes_are_as_good_as_any_fixed_number(
    takes: Takes, link_s: float, num_stages: int, rows: int
) -> None:
    best = max(
        rate_with(lanes, num_stages, rows, takes, link_s)
        for lanes in (1, 2, 3, 4, 6, 8, 12)
        if lanes <= rows
    )

    run = simulation(LaneModel(num_stages), num_stages, rows, takes, link_s)
    run.run(400)

    assert run.rate(300) >= 0.94 * best


@pytest.mark.parametrize("takes", [flat, mixed, uneven, shared_in_part])
def test_noise_and_pauses_mislead_it_little(takes: Takes) -> None:
    randomness = random.Random(3)

    def noisy(stage: int, step: Step, num_busy: int) -> float:
        pause = 20.0 if randomness.random() < 0.01 else 1.0
        return takes(stage, step, num_busy) * randomness.uniform(0.8, 1.3) * pause

    best = max(rate_with(lanes, 4, 16, takes, 0.0) for lanes in (1, 2, 3, 4, 6))
    run = simulation(LaneModel(4), 4, 16, noisy, 0.0)
    run.run(600)
    chosen = [len(step.rows) for step in run.steps[-200:]]

    usual = -(-16 // max(set(chosen), key=chosen.count))
    assert rate_with(usual, 4, 16, takes, 0.0) >= 0.9 * best


def test_before_anything_is_known_there_is_a_lane_for_each_stage_with_work() -> None:
    assert [LaneModel(4).choose(rows) for rows in (1, 2, 4, 100)] == [1, 2, 4, 4]


def test_a_fixed_number_of_lanes_is_kept_to_whatever_is_observed() -> None:
    model = LaneModel(2, fixed=3)
    for stage in (0, 1):
        model.observe(3, 4, stage, 0.01)

    assert [model.choose(rows) for rows in (2, 3, 100)] == [2, 3, 3]


def test_it_chooses_anew_when_there_are_more_rows() -> None:
    model = LaneModel(2)
    # 1 row or 2 cost the same; 16 rows cost eight times as much as 2.
    for lanes, rows, seconds in ((2, 1, 0.01), (1, 2, 0.01), (1, 16, 0.08), (2, 8, 0.04)):
        for stage in (0, 1):
            model.observe(lanes, rows, stage, seconds)

    assert (model.choose(2), model.choose(16)) == (1, 2)


def test_trials_become_rare() -> None:
    run = simulation(LaneModel(2), 2, 8, mixed, 0.0)
    run.run(2000)

    odd = [len(step.rows) != 4 for step in run.steps]
    assert any(odd[:300])
    assert sum(odd[-1000:]) < 0.03 * 1000


def test_times_are_learnt_anew_when_the_stages_are_others() -> None:
    model = LaneModel(2)
    for stage in (0, 1):
        model.observe(1, 4, stage, 0.01)
    assert model.cycle_s(4) is not None

    model.forget()

    assert model.cycle_s(4) is None
