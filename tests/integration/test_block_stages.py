"""Stages that run steps over blocks make of every token what one whole forward pass does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from handlers.pipeline.step import BLOCK
from tests.integration.staged_model import run, stages_of, tokens, write_model

#: What another order of the same sums may change.
NEAR: dict[str, Any] = {"atol": 2e-3, "rtol": 1e-3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("block_stages") / "model")


@pytest.fixture(scope="module")
def whole(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def wanted(whole: Any, ids: list[int]) -> Any:
    with torch.no_grad():
        return whole(torch.tensor([ids])).logits[0, -1]


def test_a_prompt_in_chunks_and_what_follows_equal_one_pass(folder: Path, whole: Any) -> None:
    ids, stages = tokens(150), stages_of(folder, ((0, 1), (1, 3), (3, 4)))

    for start in range(0, 148, 37):
        run(stages, [(2, start, ids[start : start + 37])])
    first = run(stages, [(2, 148, ids[148:149])])[0]
    second = run(stages, [(2, 149, ids[149:])])[0]

    torch.testing.assert_close(first, wanted(whole, ids[:149]), **NEAR)
    torch.testing.assert_close(second, wanted(whole, ids), **NEAR)


def test_rows_of_different_lengths_share_a_step(folder: Path, whole: Any) -> None:
    prompts, stages = [tokens(70, 1), tokens(3, 2), tokens(131, 3)], stages_of(folder)

    logits = run(stages, [(slot, 0, ids) for slot, ids in zip((3, 0, 1), prompts, strict=True)])

    for row, ids in zip(logits, prompts, strict=True):
        torch.testing.assert_close(row, wanted(whole, ids), **NEAR)


def test_blocks_may_lie_anywhere(folder: Path, whole: Any) -> None:
    ids, stages = tokens(130), stages_of(folder, num_blocks=5)

    logits = run(stages, [(1, 0, ids)], tables=((1, 0, 4), (1, 1, 0), (1, 2, 3)))

    torch.testing.assert_close(logits[0], wanted(whole, ids), **NEAR)


def test_two_slots_read_the_blocks_of_one_prompt(folder: Path, whole: Any) -> None:
    shared, stages = tokens(2 * BLOCK), stages_of(folder, num_blocks=5)
    ends = [tokens(9, 1), tokens(4, 2)]
    run(stages, [(0, 0, shared)], tables=((0, 0, 3), (0, 1, 1)))

    logits = run(
        stages,
        [(slot, len(shared), end) for slot, end in enumerate(ends)],
        tables=((1, 0, 3), (1, 1, 1), (0, 2, 0), (1, 2, 4)),
    )

    for row, end in zip(logits, ends, strict=True):
        torch.testing.assert_close(row, wanted(whole, shared + end), **NEAR)


def test_a_copied_block_goes_its_own_way(folder: Path, whole: Any) -> None:
    shared, stages = tokens(BLOCK + 10), stages_of(folder, num_blocks=6)
    ends = [tokens(7, 1), tokens(7, 2)]
    run(stages, [(0, 0, shared)], tables=((0, 0, 0), (0, 1, 1)))

    logits = run(
        stages,
        [(slot, len(shared), end) for slot, end in enumerate(ends)],
        tables=((1, 0, 0), (1, 1, 5)),
        copies=((1, 5),),
    )

    for row, end in zip(logits, ends, strict=True):
        torch.testing.assert_close(row, wanted(whole, shared + end), **NEAR)


@pytest.mark.parametrize("num_blocks", [16, 7], ids=["at home", "from a pool"])
def test_a_slot_forgets_whom_it_had_before(folder: Path, whole: Any, num_blocks: int) -> None:
    ids, stages = tokens(20), stages_of(folder, num_blocks=num_blocks)
    tables = () if num_blocks == 16 else ((1, 0, 5), (1, 1, 2), (1, 2, 3))
    run(stages, [(1, 0, tokens(150, 9))], tables=tables)

    logits = run(stages, [(1, 0, ids)], window=3 * BLOCK)

    torch.testing.assert_close(logits[0], wanted(whole, ids), **NEAR)


@pytest.mark.parametrize("num_blocks", [16, 7], ids=["at home", "from a pool"])
def test_numbers_that_overflowed_spoil_nobody_else(
    folder: Path, whole: Any, num_blocks: int
) -> None:
    ids, stages = tokens(20), stages_of(folder, ((0, 4),), num_blocks=num_blocks)
    tables = ((0, 0, 5), (0, 1, 2), (0, 2, 3), (1, 0, 0), (1, 1, 1)) if num_blocks == 7 else ()
    embedding = stages[0]._parts.model.get_input_embeddings().weight
    kept = embedding[7].clone()
    embedding[7] = float("nan")
    spoiled = run(stages, [(0, 0, [7] * 130), (1, 0, ids)], tables=tables)
    embedding[7] = kept

    beside = run(stages, [(1, 20, [5]), (0, 0, ids)], window=3 * BLOCK)

    assert spoiled[0].isnan().all()
    torch.testing.assert_close(spoiled[1], wanted(whole, ids), **NEAR)
    torch.testing.assert_close(beside[0], wanted(whole, [*ids, 5]), **NEAR)
    torch.testing.assert_close(beside[1], wanted(whole, ids), **NEAR)


def test_a_reset_stage_knows_no_tables(folder: Path) -> None:
    (stage,) = stages_of(folder, ((0, 4),), num_blocks=5)
    run([stage], [(0, 0, [3, 4])], tables=((0, 0, 4),))

    stage.reset()

    with pytest.raises(ValueError, match="slot 0 has no block"):
        run([stage], [(0, 2, [5])])


def test_a_block_takes_what_its_keys_and_values_take(folder: Path) -> None:
    stages = stages_of(folder, ((0, 1), (1, 4)))

    per_layer = 2 * BLOCK * 2 * 16 * 4
    assert [stage.kv_bytes_per_block for stage in stages] == [per_layer, 3 * per_layer]
