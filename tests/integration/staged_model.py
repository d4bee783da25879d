"""A small decoder on disk, its stages in one process, and steps for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from handlers.pipeline import kernels, surgery
from handlers.pipeline.stage import Stage
from handlers.pipeline.step import BLOCK, Row, Step
from handlers.testing.random_model import write_random_model

MAX_CONTEXT = 4 * BLOCK
VOCABULARY = 512


def write_model(folder: Path, family: str = "Llama", **settings: Any) -> Path:
    """Four layers; queries share keys and values in pairs."""
    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 16, "max_position_embeddings": MAX_CONTEXT, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": None,
    }  # fmt: skip
    if family == "GPT2":
        del shape["num_key_value_heads"], shape["head_dim"], shape["intermediate_size"]
    config = getattr(transformers, family + "Config")(**shape | settings)
    return write_random_model(config, folder, seed=5)


def stages_of(
    folder: Path,
    cuts: Sequence[tuple[int, int]] = ((0, 2), (2, 4)),
    *,
    num_slots: int = 4,
    num_blocks: int | None = None,
    dtype: torch.dtype = torch.float32,
    **how: Any,
) -> list[Stage]:
    """``how``: arguments of ``kernels.prepare``."""
    stages = []
    for cut in cuts:
        parts = surgery.build(folder, cut, dtype)
        kernels.prepare(parts, **{"kernels": "plain"} | how)
        stage = Stage(parts, num_slots, MAX_CONTEXT)
        stage.allocate(stage.num_home_blocks if num_blocks is None else num_blocks)
        stages.append(stage)
    return stages


def run(
    stages: Sequence[Stage],
    rows: Sequence[tuple[int, int, Sequence[int]]],
    *,
    width: int = 0,
    window: int = 0,
    **changes: Any,
) -> Tensor:
    """One step through all stages; returns the logits [rows, vocabulary].

    Args:
        rows: (slot, start, token ids).
        width, window: at least these.
        changes: ``tables`` and ``copies`` of the step.
    """
    width = max(width, *(len(ids) for _, _, ids in rows))
    end = max(start + len(ids) for _, start, ids in rows)
    step = Step(
        0,
        width,
        max(window, -(-end // BLOCK) * BLOCK),
        tuple(Row(slot, start, len(ids), bool(ids)) for slot, start, ids in rows),
        **changes,
    )
    hidden = torch.tensor([[*ids, *[0] * (width - len(ids))] for _, _, ids in rows])
    for stage in stages:
        hidden = stage.forward(step, hidden)
    return hidden


def tokens(count: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = torch.randint(2, VOCABULARY, (count,), generator=generator).tolist()
    return ids
