"""What work costs before it is done."""

from __future__ import annotations

import pytest

from scheduler.cost import Estimate, estimate


def test_a_generation_is_bounded_by_its_prompt_and_twice_its_new_tokens() -> None:
    assert estimate(10, 64) == Estimate(estimated_cost=138, prompt_cost=10, cost_per_token=2)


def test_work_without_new_tokens_costs_its_prompt() -> None:
    assert estimate(10, 0) == Estimate(estimated_cost=10, prompt_cost=10, cost_per_token=0)


def test_nothing_is_for_free() -> None:
    assert estimate(0, 0).estimated_cost == 1


def test_a_negative_count_is_refused() -> None:
    with pytest.raises(ValueError, match="must not be negative, not -1 prompt"):
        estimate(-1, 5)
