"""Stages whose layers go through torch.compile; needs a C++ compiler, and its patience."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from handlers.pipeline import kernels, surgery
from tests.integration.staged_model import run, stages_of, tokens, write_model

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler"),
    pytest.mark.timeout(400),
    # torch's own compiler uses parts of torch that it has deprecated.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def test_a_compiled_stage_gives_the_same_logits(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    prompt = [(0, 0, tokens(40))]
    compiled, plain = stages_of(folder, ((0, 4),), compiles=True), stages_of(folder, ((0, 4),))

    for rows in (prompt, [(0, 40, [7])], [(0, 41, [9]), (1, 0, [3])]):
        torch.testing.assert_close(run(compiled, rows), run(plain, rows), atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize(("how", "count"), [("plain", 3), ("packed", 3)])
def test_norms_and_what_is_not_packed_are_compiled(tmp_path: Path, how: str, count: int) -> None:
    parts = surgery.build(write_model(tmp_path / "model"), (1, 3), torch.float32)

    done = kernels.prepare(parts, kernels=how, compiles=True)

    # Two norms, and the feed-forward network or its activation, in each of two layers.
    assert done.endswith(f"{2 * count} parts compiled")
    layer = parts.decoder.layers[0]
    assert layer.self_attn._compiled_call_impl is None
    assert layer.input_layernorm._compiled_call_impl is not None
    assert (layer.mlp._compiled_call_impl is not None) is (how == "plain")
