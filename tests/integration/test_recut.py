"""Stages whose times drift apart are cut anew while requests stay open."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from handlers.testing.random_model import write_random_model
from tests.integration.replica import Replica

pytestmark = pytest.mark.timeout(240)
REQUEST: dict[str, Any] = {"prompt": "def ", "max_new_tokens": 300, "ignore_eos": True}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Path:
    config = LlamaConfig(
        vocab_size=2048, hidden_size=256, intermediate_size=1024, num_hidden_layers=8,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("model")
    return write_random_model(config, folder, tokenizer_from=demo_folder)


@pytest.fixture
def slow_while(tmp_path: Path) -> Path:
    return tmp_path / "slow"


@pytest.fixture
def replica(
    root: Path, model_folder: Path, slow_while: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Replica]:
    monkeypatch.setenv("PYTHONPATH", str(root / "tests" / "data" / "slowed_stage"))
    monkeypatch.setenv("SLOW_WHILE", str(slow_while))
    replica = Replica(model_folder, 2, max_context=512, partition_by="measured")
    yield replica
    replica.close()


def cuts(replica: Replica) -> list[list[int]]:
    found: list[list[int]] = replica.status()["plan"]["cuts"]
    return found


def test_a_stage_that_becomes_slower_gets_fewer_layers_and_no_token_changes(
    replica: Replica, slow_while: Path
) -> None:
    undisturbed = replica.generate(**REQUEST)
    before = cuts(replica)

    slow_while.touch()
    until = time.monotonic() + 180
    while cuts(replica) == before:
        assert time.monotonic() < until, replica.status()
        assert replica.generate(**REQUEST).token_ids == undisturbed.token_ids

    assert cuts(replica)[1][0] > before[1][0]
    assert replica.generate(**REQUEST).token_ids == undisturbed.token_ids
    assert replica.status()["num_faults"] == 0
