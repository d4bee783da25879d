"""What a model's YAML and a request say, in vLLM's words."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from handlers import model_config
from handlers.engines._vllm_library import Library, _seed, engine_arguments, own_environment
from handlers.model_config import ModelConfig

FOLDER = Path("/models/demo")


@pytest.fixture
def config(root: Path) -> ModelConfig:
    demo = model_config.load(root / "model_configs" / "demo.yaml")
    return replace(demo, engine="vllm", num_stages=4)


def test_ranks_are_stages_unless_the_options_say_otherwise(config: ModelConfig) -> None:
    arguments = engine_arguments(config, FOLDER)

    assert arguments["pipeline_parallel_size"] == 4
    assert arguments["tensor_parallel_size"] == 1


def test_what_is_left_of_the_ranks_by_tensor_parallelism_are_stages(config: ModelConfig) -> None:
    options = {"tensor_parallel_size": 2}

    arguments = engine_arguments(replace(config, engine_options=options), FOLDER)

    assert arguments["pipeline_parallel_size"] == 2


@pytest.mark.parametrize(
    "options",
    [
        {"tensor_parallel_size": 3},
        {"tensor_parallel_size": 0},
        {"tensor_parallel_size": "2"},
        {"tensor_parallel_size": 2, "pipeline_parallel_size": 4},
    ],
    ids=str,
)
def test_a_split_that_is_not_the_ranks_is_refused(
    config: ModelConfig, options: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"nproc-per-node, which is 4"):
        engine_arguments(replace(config, engine_options=options), FOLDER)


def test_options_go_before_what_the_yaml_says_elsewhere(config: ModelConfig) -> None:
    options = {"max_num_seqs": 3, "enforce_eager": True}

    arguments = engine_arguments(replace(config, engine_options=options), FOLDER)

    assert (arguments["max_num_seqs"], arguments["enforce_eager"]) == (3, True)
    assert arguments["max_model_len"] == config.max_context


@pytest.mark.parametrize("name", ["model", "nnodes", "data_parallel_size"])
def test_what_plait_decides_is_no_option(config: ModelConfig, name: str) -> None:
    with pytest.raises(ValueError, match=f"engine_options.{name} cannot be set"):
        engine_arguments(replace(config, engine_options={name: 2}), FOLDER)


def test_a_seed_differs_by_answer_and_by_place_and_fits_vllm() -> None:
    seeds = {_seed(7, index, known) for index in range(8) for known in range(8)}

    assert len(seeds) == 64
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_vllms_processes_do_not_see_torchrun_and_this_one_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("RANK", "0")

    with own_environment():
        seen = {name for name in ("RANK", "TORCHELASTIC_USE_AGENT_STORE") if name in os.environ}

    assert seen == set()
    assert os.environ["RANK"] == "0"


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    for name in [name for name in sys.modules if name.split(".")[0] == "vllm"]:
        monkeypatch.delitem(sys.modules, name)

    with pytest.raises(ValueError, match="not installed here"):
        Library.load()
