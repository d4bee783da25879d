"""What a model's YAML may say about scaling it."""

from __future__ import annotations

import pytest

from handlers.scale_section import Scale
from tests.unit.model_files import GOOD, config, problems

SCALE = "  scale:\n    min: 0\n    max: 4\n"


def test_a_model_without_the_section_has_a_fixed_number_of_replicas():
    assert (config().scale, config().num_replicas) == (None, 2)


def test_a_model_that_scales_begins_with_replicas_or_with_the_number_next_to_one():
    fixed = GOOD.replace("  replicas: 2\n", "")

    assert config(GOOD + SCALE).num_replicas == 2
    assert config(fixed + SCALE).num_replicas == 1
    assert config(fixed + SCALE.replace("min: 0", "min: 3")).num_replicas == 3
    assert config(GOOD + SCALE).scale == Scale(max=4, min=0)


@pytest.mark.parametrize(
    ("section", "key", "said"),
    [
        ("  scale: 4\n", "plait.scale", "must be a section"),
        ("  scale:\n    min: 2\n", "plait.scale.max", "is missing"),
        ("  scale:\n    max: 0\n", "plait.scale.max", "a whole number from 1"),
        ("  scale:\n    max: 2\n    min: 3\n", "plait.scale.min", "more than max, which is 2"),
        ("  scale:\n    max: 1\n", "plait.replicas", "plait.scale allows 1 to 1"),
        (SCALE + "    use_ratio: 1.5\n", "plait.scale.use_ratio", "a number from 0.1 to 1"),
        (SCALE + "    target_wait_s: 0\n", "plait.scale.target_wait_s", "a number from 0.1"),
        (
            SCALE + "    target_wait_s: 5\n    target_ttft_s: 2\n",
            "plait.scale.target_ttft_s",
            "leave one of the two out",
        ),
        (
            "  scale:\n    max: 4\n    idle_s: 60\n",
            "plait.scale.idle_s",
            "counts with min: 0 only",
        ),
        (SCALE + "    idle: 60\n", "plait.scale.idle", "did you mean 'idle_s'?"),
    ],
)
def test_what_is_wrong_with_a_scale_is_named(section: str, key: str, said: str):
    (found,) = problems(GOOD + section)

    assert f" {key}: " in found
    assert said in found
