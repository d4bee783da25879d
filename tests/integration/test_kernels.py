"""How a stage's weights are kept: what is chosen, that it computes the same, and what is freed."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from handlers.pipeline import kernels, surgery
from handlers.pipeline.kernels import choice
from handlers.pipeline.kernels.weights import (
    LINEAR_TYPES,
    Form,
    HalfWeights,
    OneDNN,
    PackedLinear,
)
from tests.integration.staged_model import run, stages_of, tokens, write_model

NEAR: dict[str, Any] = {"atol": 2e-3, "rtol": 1e-3}
PROMPT = tokens(40)


@pytest.fixture(scope="module", params=["Llama", "GPT2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("kernels") / request.param, request.param)


def logits_of(folder: Path, **how: Any) -> Any:
    return run(stages_of(folder, **how), [(0, 0, PROMPT)])[0]


def test_packed_weights_give_the_same_logits(folder: Path) -> None:
    torch.testing.assert_close(
        logits_of(folder, kernels="packed"), logits_of(folder, kernels="plain"), **NEAR
    )


def test_packed_bfloat16_is_as_near_to_float32_as_plain_bfloat16(folder: Path) -> None:
    exact = logits_of(folder)
    how: dict[str, Any] = {"dtype": torch.bfloat16}

    plain = (logits_of(folder, **how) - exact).norm() / exact.norm()
    packed = (logits_of(folder, kernels="packed", **how) - exact).norm() / exact.norm()

    assert packed < 1.5 * plain + 1e-3


def test_every_matrix_is_packed_and_the_plain_one_freed(folder: Path) -> None:
    parts = surgery.build(folder, (1, 3), torch.float32)
    plain = [weakref.ref(m.weight) for m in parts.model.modules() if type(m) in LINEAR_TYPES]

    done = kernels.prepare(parts, kernels="packed")

    gc.collect()
    assert done == f"OneDNN for {len(plain)} matrices"
    assert [weight() for weight in plain] == [None] * len(plain)


def test_small_matrices_stay_as_they_are(folder: Path) -> None:
    parts = surgery.build(folder, (0, 4), torch.float32)

    assert kernels.prepare(parts, kernels="auto") == "plain"


def test_the_form_that_clearly_wins_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"linear": 1.0, OneDNN: 0.85, HalfWeights: 0.5}
    monkeypatch.setattr(choice, "_seconds", lambda ways, _: [_times(way[0], times) for way in ways])
    weight = torch.zeros(4097, 1024, dtype=torch.bfloat16)

    assert choice.choose(weight, weight.nbytes) is HalfWeights


def test_a_form_that_hardly_wins_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"linear": 1.0, OneDNN: 0.95}
    monkeypatch.setattr(choice, "_seconds", lambda ways, _: [_times(way[0], times) for way in ways])

    assert choice.choose(torch.zeros(4098, 1024), 1 << 24) is None


def _times(product: Any, times: dict[Any, float]) -> list[float]:
    return [times.get(type(product), times["linear"])] * len(choice.ROWS)


def test_a_weight_that_does_not_fit_a_form_stays(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "FORMS", (HalfWeights,))
    parts = surgery.build(folder, (0, 2), torch.bfloat16)
    layers = [m for m in parts.decoder.modules() if type(m) in LINEAR_TYPES]
    layers[1].weight.data[0, 0] = 1e6

    kernels.prepare(parts, kernels="packed")

    left = [m for m in parts.decoder.modules() if type(m) in LINEAR_TYPES]
    assert left == [layers[1]]


def test_a_model_that_reads_its_weights_itself_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def looks(self: Any, inputs: Any) -> Any:
        return inputs @ self.weight.new_ones(self.weight.shape[0], 1) + self._form(inputs)

    monkeypatch.setattr(PackedLinear, "forward", looks)

    with pytest.raises(ValueError, match="write kernels: plain"):
        kernels.prepare(surgery.build(folder, (0, 2), torch.float32), kernels="packed")


def test_weights_that_nothing_packs_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "FORMS", (HalfWeights,))

    with pytest.raises(ValueError, match="nothing here packs"):
        kernels.prepare(surgery.build(folder, (0, 2), torch.float32), kernels="packed")


@pytest.mark.parametrize(
    ("how", "message"),
    [({"kernels": "fast"}, "auto, plain, packed"), ({"quantize": "int2"}, "none, int8, int4")],
)
def test_what_is_unknown_is_refused(folder: Path, how: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernels.prepare(surgery.build(folder, (0, 1), torch.float32), **how)


@pytest.mark.parametrize("form", [OneDNN, HalfWeights])
def test_a_form_takes_inputs_of_any_shape(form: type[Form]) -> None:
    weight = torch.randn(24, 16, generator=torch.Generator().manual_seed(0))
    weight = weight if form is OneDNN else weight.bfloat16()
    bias, inputs = torch.ones(24).to(weight), torch.randn(2, 3, 16).to(weight)
    product = form(weight, bias)

    expected = nn.functional.linear(inputs.float(), weight.float(), bias.float())

    found = product(inputs.transpose(0, 1)).transpose(0, 1)
    torch.testing.assert_close(found.float(), expected, atol=0.05, rtol=0.02)
