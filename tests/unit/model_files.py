"""A right YAML of a model, to be changed by tests of what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from handlers.model_config import ModelConfig, ModelConfigError, parse

PATH = Path("/repository/model_configs/demo.yaml")
ENGINES = frozenset({"pipelined", "encoder", "transformers", "vllm", "echo"})

GOOD = """\
deviceType: gpu
deviceIds: [0, 1, 2, 3]
parallelType: pp
torchrun:
  nproc-per-node: 2
  rdzv-endpoint: "localhost:0"
  OMP_NUMBER_THREADS: 1
continuousBatching: true
batchSize: 16
responseTimeout: 60
startupTimeout: 300
plait:
  task: generate
  source:
    folder: models/demo
  engine: pipelined
  dtype: float32
  partition: auto
  lanes: auto
  max_context: 1024
  prefill_chunk: 64
  replicas: 2
"""


def config(text: str = GOOD, path: Path = PATH) -> ModelConfig:
    return parse(text, path, ENGINES)


def changed(old: str, new: str) -> str:
    assert GOOD.count(old) == 1, old
    return GOOD.replace(old, new)


def problems(text: str, path: Path = PATH) -> tuple[str, ...]:
    with pytest.raises(ModelConfigError) as caught:
        config(text, path)
    return caught.value.lines
