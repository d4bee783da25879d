"""With the same shapes a row's logits are the same to the last bit, whatever is around it.

Rows, width and window (a multiple of the block) stay as they are; the other rows' tokens, the
row's slot, its place among the rows and where its blocks lie do not matter. This is what lets a
sequence go on exactly after its stages were lost.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from handlers.pipeline.stage import Stage
from handlers.pipeline.step import BLOCK
from tests.integration.staged_model import run, stages_of, tokens, write_model

FAMILIES = ["Llama", "Gemma2", "GPT2"]
FORMS = list(itertools.product([torch.float32, torch.bfloat16], ["plain", "packed"]))
#: The sequence that is looked at: a prompt, and what follows token by token.
PROMPT, ANSWER = tokens(40), tokens(6, 1)
CHUNK = 48


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("exact_steps") / request.param, request.param)


def logits_of(
    stages: list[Stage], slots: tuple[int, int, int], which: int, seed: int, **changes: object
) -> Tensor:
    """Prefill and decode the sequence as row ``which``, others' tokens being from ``seed``."""
    rows = [(slot, 0, tokens(30 + slot + seed, seed + slot)) for slot in slots]
    rows[which] = (slots[which], 0, PROMPT)
    seen = [run(stages, rows, width=CHUNK, window=2 * BLOCK, **changes)[which]]
    for place, token_id in enumerate(ANSWER):
        rows = [(slot, start + len(ids), [seed + 7]) for slot, start, ids in rows]
        rows[which] = (slots[which], len(PROMPT) + place, [token_id])
        seen.append(run(stages, rows, window=2 * BLOCK)[which])
    return torch.stack(seen)


@pytest.fixture(scope="module", params=FORMS, ids=lambda form: f"{form[0]} {form[1]}")
def reference(request: pytest.FixtureRequest, folder: Path) -> tuple[dict[str, object], Tensor]:
    dtype, how = request.param
    form = {"dtype": dtype, "kernels": how}
    return form, logits_of(stages_of(folder, **form), (0, 1, 2), 0, 0)


def test_whatever_the_other_rows_hold(
    folder: Path, reference: tuple[dict[str, object], Tensor]
) -> None:
    form, expected = reference

    assert torch.equal(logits_of(stages_of(folder, **form), (0, 1, 2), 0, 11), expected)


def test_whichever_place_and_slot_it_has(
    folder: Path, reference: tuple[dict[str, object], Tensor]
) -> None:
    form, expected = reference

    assert torch.equal(logits_of(stages_of(folder, **form), (1, 2, 3), 2, 5), expected)


def test_read_in_place_or_gathered(
    folder: Path, reference: tuple[dict[str, object], Tensor]
) -> None:
    form, expected = reference

    assert torch.equal(logits_of(stages_of(folder, **form), (3, 0, 1), 0, 5), expected)


def test_wherever_its_blocks_lie(folder: Path, reference: tuple[dict[str, object], Tensor]) -> None:
    form, expected = reference
    tables = ((0, 0, 6), (0, 1, 1), (1, 0, 3), (1, 1, 5), (2, 0, 2), (2, 1, 0))

    found = logits_of(stages_of(folder, num_blocks=7, **form), (0, 1, 2), 0, 0, tables=tables)

    assert torch.equal(found, expected)


def test_beside_rows_without_tokens(
    folder: Path, reference: tuple[dict[str, object], Tensor]
) -> None:
    form, expected = reference
    stages = stages_of(folder, **form)

    rows = [(0, 0, PROMPT), (1, 0, []), (2, 0, [])]
    prefilled = run(stages, rows, width=CHUNK, window=2 * BLOCK)[0]
    rows = [(0, len(PROMPT), ANSWER[:1]), (1, 0, []), (2, 0, [])]
    decoded = run(stages, rows, window=2 * BLOCK)[0]

    assert torch.equal(torch.stack([prefilled, decoded]), expected[:2])
