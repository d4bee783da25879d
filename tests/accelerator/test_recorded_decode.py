"""Decode steps recorded as CUDA graphs give the tokens that running the model's code gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from handlers.pipeline import kernels, surgery
from handlers.pipeline.kernels.graphs import recorder_for
from handlers.pipeline.stage import Stage
from tests.integration.staged_model import MAX_CONTEXT, run, tokens, write_model

DEVICE = torch.device("cuda")


def stages(folder: Path, how: str) -> list[Stage]:
    made = []
    for cut in ((0, 2), (2, 4)):
        parts = surgery.build(folder, cut, torch.bfloat16, DEVICE)
        kernels.prepare(parts, kernels=how)
        made.append(Stage(parts, 4, MAX_CONTEXT, recorder_for(DEVICE, how)))
    return made


@pytest.mark.parametrize("family", ["Llama", "Gemma2", "GPT2"])
@pytest.mark.parametrize("slots", [(0, 1, 2), (0, 1, 3)], ids=["in place", "gathered"])
def test_recorded_steps_equal_run_ones(
    family: str, slots: tuple[int, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_model(tmp_path / "model", family)
    both = [stages(folder, how) for how in ("auto", "plain")]
    prompts = [(slot, 0, tokens(60 + slot, slot)) for slot in slots]

    found, expected = (
        [run(each, prompts)]
        + [run(each, [(s, 60 + s + n, tokens(1, n + s)) for s in slots]) for n in range(8)]
        for each in both
    )

    assert "stage_not_recorded" not in caplog.text
    for recorded, ran in zip(found, expected, strict=True):
        torch.testing.assert_close(recorded, ran)
