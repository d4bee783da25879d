"""Keys and values within a budget: who must wait waits, who must go comes back, nobody notices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from handlers.pipeline.step import BLOCK
from handlers.testing.random_model import write_random_model
from tests.integration.replica import Replica

pytestmark = pytest.mark.timeout(150)
NUM_LAYERS, HEAD_SIZE, CONTEXT = 2, 16, 512
#: Keys and values of one block in one of two stages, in float32.
BLOCK_BYTES = 2 * HEAD_SIZE * BLOCK * 4
REQUESTS: list[dict[str, Any]] = [
    {"prompt": f"def f{i}(" + "x, " * (20 * i), "max_new_tokens": 200, "ignore_eos": True}
    for i in range(6)
]
SYSTEM = "Answer in one line of Python.\n" * 12


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Path:
    config = LlamaConfig(
        vocab_size=2048, hidden_size=32, intermediate_size=64, num_hidden_layers=NUM_LAYERS,
        num_attention_heads=2, num_key_value_heads=1, head_dim=HEAD_SIZE,
        max_position_embeddings=CONTEXT, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("model")
    return write_random_model(config, folder, tokenizer_from=demo_folder)


@pytest.fixture(scope="module")
def roomy(model_folder: Path) -> Iterator[Replica]:
    replica = Replica(model_folder, 2, max_context=CONTEXT)
    yield replica
    replica.close()


@pytest.fixture(scope="module")
def tight(model_folder: Path) -> Iterator[Replica]:
    replica = Replica(model_folder, 2, max_context=CONTEXT, kv_memory_bytes=14 * BLOCK_BYTES)
    yield replica
    replica.close()


def counts(replica: Replica) -> dict[str, int]:
    """Of the schedule at rest, once all it has done is written down."""

    def is_told() -> bool:
        told = replica.status()["schedule"]
        num_begun = told["num_admitted"] - told["num_preempted"]
        return num_begun == replica.num_answers and not told["num_running"]

    replica.wait_until(is_told)
    schedule: dict[str, int] = replica.status()["schedule"]
    return schedule


def test_a_budget_too_small_for_all_changes_no_token(roomy: Replica, tight: Replica) -> None:
    wanted = [result.token_ids for result in roomy.generate_all(REQUESTS)]

    assert [result.token_ids for result in tight.generate_all(REQUESTS)] == wanted
    assert tight.status()["kv"]["num_blocks"] == 12
    assert roomy.status()["kv"]["num_blocks"] == 8 * CONTEXT // BLOCK


def test_a_sequence_that_finds_no_block_is_put_off_and_resumed(tight: Replica) -> None:
    long = [request | {"max_new_tokens": 350} for request in REQUESTS[:4]]

    results = tight.generate_all(long)

    assert [len(result.token_ids) for result in results] == [350] * 4
    assert counts(tight)["num_preempted"] > 0


def test_a_budget_without_room_for_one_context_is_refused(model_folder: Path) -> None:
    with pytest.raises(ValueError, match="kv_memory"):
        Replica(model_folder, 2, max_context=CONTEXT, kv_memory_bytes=4 * BLOCK_BYTES)


@pytest.mark.parametrize("which", ["roomy", "tight"])
def test_a_prompt_that_begins_like_an_earlier_one_is_not_computed_again(
    which: str, request: pytest.FixtureRequest
) -> None:
    replica: Replica = request.getfixturevalue(which)
    first = replica.generate(prompt=SYSTEM + "a = ", max_new_tokens=8, ignore_eos=True)
    before = counts(replica)["num_tokens_saved"]

    again = replica.generate(prompt=SYSTEM + "a = ", max_new_tokens=8, ignore_eos=True)

    assert again.token_ids == first.token_ids
    assert counts(replica)["num_tokens_saved"] >= before + 2 * BLOCK


def test_several_answers_share_their_prompt(roomy: Replica) -> None:
    how = {"temperature": 1.0, "seed": 5, "max_new_tokens": 30, "ignore_eos": True}
    prompt = SYSTEM + "several = "

    several = roomy.generate(prompt=prompt, n=4, **how)
    alone = roomy.generate(prompt=prompt, **how)

    answers = [several.tokens_of(index) for index in range(4)]
    assert answers[0] == alone.token_ids
    assert len({tuple(answer) for answer in answers}) == 4
