"""Whether a lost attempt can go on is said before it begins."""

from __future__ import annotations

from typing import Any

import pytest

from handlers.model_config import ModelConfig, Source
from handlers.resumption import fields_in_the_way, label
from handlers.wire import EmbeddingRequest, GenerationRequest

PLAIN = GenerationRequest(prompt="x")


def config(engine: str = "pipelined", resume: str = "fast") -> ModelConfig:
    return ModelConfig(
        name="m",
        task="generate",
        source=Source("folder", "/nowhere"),
        engine=engine,
        dtype="float32",
        num_stages=1,
        partition=None,
        num_lanes=None,
        max_batch=1,
        max_context=64,
        prefill_chunk=8,
        num_replicas=1,
        device_type="cpu",
        device_ids=None,
        response_timeout_s=1,
        startup_timeout_s=1,
        resume=resume,
    )


@pytest.mark.parametrize(
    ("engine", "resume", "expected"),
    [
        ("pipelined", "fast", "close"),
        ("pipelined", "exact", "exact"),
        ("transformers", "fast", "exact"),
        ("vllm", "fast", "close"),
    ],
)
def test_a_model_says_what_its_lost_attempts_are_worth(
    engine: str, resume: str, expected: str
) -> None:
    assert label(PLAIN, config(engine, resume)) == expected


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("json_schema", "{}"),
        ("regex", "a+"),
        ("presence_penalty", 0.5),
        ("frequency_penalty", -0.5),
    ],
)
def test_what_an_engine_keeps_beside_the_tokens_cannot_go_on(field: str, value: Any) -> None:
    request = GenerationRequest(prompt="x", **{field: value})

    assert label(request, config("vllm")) == "none"
    assert fields_in_the_way(request, config("vllm")) == (field,)


def test_a_grammar_that_is_replayed_goes_on() -> None:
    request = GenerationRequest(prompt="x", json_schema="{}")

    assert label(request, config("pipelined", "exact")) == "exact"


def test_an_answer_in_one_piece_is_never_mixed() -> None:
    assert label(EmbeddingRequest(("x",)), config("encoder")) == "close"
