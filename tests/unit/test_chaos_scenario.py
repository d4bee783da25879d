"""A seed decides everything that happens."""

from __future__ import annotations

from collections import Counter

import pytest

from scheduler.testing.chaos.faults import KINDS
from scheduler.testing.chaos.scenario import LOAD_SHAPE, QUIET_S, Scenario, draw, rates


def scenario(seed: int = 1, num_faults: int = 200) -> Scenario:
    return draw(seed, KINDS, duration_s=600, num_faults=num_faults, most_per_s=2, num_nodes=3)


def test_a_seed_draws_the_same_again() -> None:
    assert scenario(7) == scenario(7)
    assert scenario(7) != scenario(8)


def test_more_faults_than_asked_for_are_planned_because_some_find_nothing_to_hit() -> None:
    assert len(scenario(num_faults=200).faults) > 200


def test_every_kind_comes() -> None:
    assert {planned.kind for planned in scenario().faults} == set(KINDS)


def test_faults_last_as_long_as_their_kind_says_and_come_after_a_quiet_beginning() -> None:
    for planned in scenario().faults:
        kind = KINDS[planned.kind]
        assert kind.shortest_s <= planned.duration_s <= kind.longest_s
        assert planned.at_s >= QUIET_S


def test_the_load_rises_and_falls() -> None:
    steps = [rate for _, rate in rates(600, 2)]

    assert steps[: len(LOAD_SHAPE)] == [pytest.approx(2 * part / 10) for part in LOAD_SHAPE]


def test_the_load_is_as_heavy_as_its_steps() -> None:
    by_step = Counter(int(arrival.at_s // 50) for arrival in scenario().arrivals)

    assert by_step[3] > 3 * by_step[0]  # ten parts, and one


def test_what_is_scaled_down_is_scaled_up_again() -> None:
    assert scenario().rescales[-1].num_replicas == 3
    assert {rescale.num_replicas for rescale in scenario().rescales} == {1, 2, 3}
