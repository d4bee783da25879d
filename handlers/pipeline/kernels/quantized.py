"""Keeps the weights of a stage's decoder layers as small integers, with torchao.

Only weights are quantized: they are what fills the memory and what a decode step reads. The head
keeps its precision, since the draw hangs on it, and so do norms and embeddings. For 8 bits an
output's weights share a scale; for 4 bits a group of neighbours does. Products are computed in
the model's own type.

torchao is optional, and imported only when it is asked for.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import nn

from handlers.pipeline.kernels.weights import linears_of, matrix_of
from handlers.pipeline.surgery import StageModel

KINDS: Final = ("int8", "int4")
#: Weights that share a scale, for 4 bits.
GROUP_SIZE: Final = 32


def quantize(parts: StageModel, kind: str) -> str:
    """Quantize in place; returns what was done.

    Raises:
        ValueError: the kind is unknown, torchao is missing, or it cannot do so here.
    """
    if kind not in KINDS:
        raise ValueError(f"quantize is {kind!r}; allowed are: none, {', '.join(KINDS)}")
    try:
        from torchao.quantization import quantize_
    except ImportError as error:
        raise ValueError(
            f"quantize is {kind}, which needs torchao: install 'plait[quantize]' ({error})"
        ) from error
    places = linears_of(parts.decoder)
    for parent, name, module in places:
        setattr(parent, name, _as_linear(module))
    device = matrix_of(places[0][2])[0].device if places else torch.device("cpu")
    try:
        # Ordinary tensors, not inference ones, are what torchao's types are made of.
        with torch.inference_mode(False), torch.no_grad():
            quantize_(parts.decoder, _configuration(kind, device))
    except (RuntimeError, NotImplementedError, AssertionError, ImportError) as error:
        raise ValueError(f"quantize is {kind}, which torchao cannot do here: {error}") from error
    return f"{kind} for {len(places)} matrices"


def _configuration(kind: str, device: torch.device) -> Any:
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig

    if kind == "int8":
        return Int8WeightOnlyConfig(set_inductor_config=False)
    if device.type == "cpu":
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

        return PrototypeInt4WeightOnlyConfig(group_size=GROUP_SIZE, set_inductor_config=False)
    return Int4WeightOnlyConfig(
        group_size=GROUP_SIZE, int4_packing_format="tile_packed_to_4d", set_inductor_config=False
    )


def _as_linear(module: nn.Module) -> nn.Linear:
    """The same layer as the type that torchao knows."""
    if isinstance(module, nn.Linear):
        return module
    weight, bias = matrix_of(module)
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear
