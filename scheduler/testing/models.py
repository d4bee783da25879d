"""Builders of models' configs; they default whatever a test is not about."""

from __future__ import annotations

from typing import Any

from handlers.model_config import ModelConfig, Source


def config(name: str = "demo", **changes: Any) -> ModelConfig:
    """A decoder in two stages on CPUs, four requests at once."""
    values: dict[str, Any] = {
        "task": "generate",
        "source": Source("folder", "/models"),
        "engine": "pipelined",
        "dtype": "float32",
        "num_stages": 2,
        "partition": None,
        "num_lanes": None,
        "max_batch": 4,
        "max_context": 1024,
        "prefill_chunk": 64,
        "num_replicas": 1,
        "device_type": "cpu",
        "device_ids": None,
        "response_timeout_s": 60,
        "startup_timeout_s": 60,
    }
    return ModelConfig(name=name, **{**values, **changes})
