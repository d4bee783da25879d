"""Prepares a built stage: its weights are quantized or packed, and it is compiled.

On a CPU weights are packed where that is faster (``auto``), wherever it can be done (``packed``)
or nowhere (``plain``); elsewhere the device's libraries keep them as they like. Weights that took
another form are freed, one matrix after another.

A model's own code may look at a weight instead of calling its layer, and would find it gone. So
the decoder is asked for the same thing before and after.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from handlers.pipeline.kernels import choice, compiled, quantized
from handlers.pipeline.kernels.weights import Form, PackedLinear, linears_of, matrix_of
from handlers.pipeline.surgery import StageModel

KERNELS: Final = ("auto", "plain", "packed")
#: Weights below which a matrix is not worth packing: the other product takes longer to call.
MIN_PACKED_WEIGHTS: Final = 1 << 18

Place = tuple[nn.Module, str, nn.Module]


@torch.inference_mode()
def prepare(
    parts: StageModel, *, kernels: str = "auto", quantize: str = "none", compiles: bool = False
) -> str:
    """Make the stage fast, in place.

    Args:
        kernels: ``auto``, ``plain`` or ``packed``. Quantized weights are not packed.
        quantize: ``none``, ``int8`` or ``int4``: the type of the decoder layers' weights.
        compiles: whether the layers are compiled, when a shape is met for the first time.

    Returns:
        What was done, in a few words for the log.

    Raises:
        ValueError: what is asked for is unknown, or cannot be done here or with this model.
    """
    if kernels not in KERNELS:
        raise ValueError(f"kernels is {kernels!r}; allowed are: {', '.join(KERNELS)}")
    done = quantized.quantize(parts, quantize) if quantize != "none" else _pack(parts, kernels)
    return f"{done}, {compiled.compile_layers(parts)}" if compiles else done


def _pack(parts: StageModel, kernels: str) -> str:
    places = _places(parts, kernels)
    if kernels == "plain" or not places:
        return "plain"
    modules = [module for *_, module in places]
    weight, _ = matrix_of(_commonest(modules))
    if kernels == "auto":
        form = choice.choose(weight, sum(_weight(module).nbytes for module in modules))
    else:
        form = choice.available(weight)
    if form is None:
        if kernels == "packed":
            raise ValueError(
                f"kernels is packed, but nothing here packs {weight.dtype} weights; write auto"
            )
        return "plain"
    _replace(parts, places, form)
    return f"{form.__name__} for {len(places)} matrices"


def _places(parts: StageModel, kernels: str) -> list[Place]:
    """The layers to pack; none where weights are not in the processor's own memory."""
    least = MIN_PACKED_WEIGHTS if kernels == "auto" else 1
    return [
        place
        for place in linears_of(parts.model)
        if _weight(place[2]).numel() >= least and _weight(place[2]).device.type == "cpu"
    ]


def _commonest(modules: Sequence[nn.Module]) -> nn.Module:
    """One of the shape that most weights are in."""
    totals: Counter[torch.Size] = Counter()
    for module in modules:
        totals[_weight(module).shape] += _weight(module).numel()
    shape, _ = totals.most_common(1)[0]
    return next(module for module in modules if _weight(module).shape == shape)


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def _replace(parts: StageModel, places: Sequence[Place], form: type[Form]) -> None:
    before = _trial(parts)
    for parent, name, module in places:
        weight, bias = matrix_of(module)
        try:
            kept = form(weight, bias)
        except RuntimeError:
            continue  # this one matrix stays: it holds a number that the form cannot
        setattr(parent, name, PackedLinear(kept, weight))
    try:
        after = _trial(parts)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise ValueError(f"{_refusal(parts)}: {error}") from error
    tolerance = 0.05 * float(before.abs().max())
    if not torch.allclose(before, after, atol=tolerance, rtol=0.0):
        raise ValueError(_refusal(parts))


def _refusal(parts: StageModel) -> str:
    kind = type(parts.model).__name__
    return f"{kind} looks at its weights itself, so they cannot be packed; write kernels: plain"


def _trial(parts: StageModel) -> Tensor:
    """What the decoder makes of three tokens."""
    arguments: dict[str, Any] = {
        "attention_mask": torch.ones(1, 3, dtype=torch.long),
        "position_ids": torch.arange(3)[None],
        "use_cache": False,
    }
    if parts.is_first:
        arguments["input_ids"] = torch.arange(3)[None]
    else:
        width = parts.config.get_text_config(decoder=True).hidden_size
        hidden = torch.randn(1, 3, width, generator=torch.Generator().manual_seed(0))
        arguments["inputs_embeds"] = hidden.to(next(parts.model.parameters()).dtype)
    output: Tensor = parts.decoder(**arguments).last_hidden_state
    return output.float()
