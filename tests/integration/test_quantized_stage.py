"""Stages whose weights torchao keeps as small integers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from handlers.pipeline import kernels, surgery
from tests.integration.staged_model import run, stages_of, tokens, write_model

has_torchao = pytest.mark.skipif(
    importlib.util.find_spec("torchao") is None, reason="needs torchao: the extra quantize"
)
#: How far the hidden states after one layer may stray, as a share of their size.
STRAY = {"int8": 0.05, "int4": 0.4}
ONE_LAYER = ((0, 1),)


@pytest.fixture(scope="module", params=["Llama", "GPT2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("quantized") / request.param, request.param)


@has_torchao
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", STRAY)
def test_hidden_states_stay_near(folder: Path, kind: str, dtype: torch.dtype) -> None:
    rows = [(0, 0, tokens(40)), (1, 0, tokens(40, 1))]

    exact = run(stages_of(folder, ONE_LAYER), rows)
    found = run(stages_of(folder, ONE_LAYER, quantize=kind, dtype=dtype), rows).float()

    stray = (found - exact).norm() / exact.norm()
    assert 1e-4 < stray < STRAY[kind]


@has_torchao
@pytest.mark.parametrize(("kind", "ratio"), [("int8", 0.3), ("int4", 0.25)])
def test_layers_take_less_memory(folder: Path, kind: str, ratio: float) -> None:
    parts = surgery.build(folder, (1, 3), torch.float32)
    before = _matrix_bytes(parts)

    kernels.prepare(parts, quantize=kind)

    assert _matrix_bytes(parts) < ratio * before


def _matrix_bytes(parts: surgery.StageModel) -> int:
    weights = [p for p in parts.decoder.parameters() if p.ndim > 1]
    names = [getattr(type(w), "tensor_data_names", None) for w in weights]
    return sum(
        w.nbytes if of is None else sum(getattr(w, name).nbytes for name in of)
        for w, of in zip(weights, names, strict=True)
    )


def test_quantizing_without_torchao_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What an import finds when a package is not there.
    monkeypatch.setitem(__import__("sys").modules, "torchao.quantization", None)

    with pytest.raises(ValueError, match=r"needs torchao: install 'plait\[quantize\]'"):
        kernels.prepare(surgery.build(folder, (0, 1), torch.float32), quantize="int8")
