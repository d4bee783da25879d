"""Compiles what torch.compile can compile once for all layers of a stage.

Those are the parts of a layer that do not touch the cache, such as norms and the feed-forward
network: their code depends on nothing but the shape of the hidden states. Attention writes to the
cache by its layer's number and reads a window that grows, and would be compiled again for each.
Weights that were packed are called through products of their own, which the compiler cannot see
into, and the parts that hold them stay as they are.

It takes seconds at the first steps; the second time a shape differs, code is made for any.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from handlers.pipeline.kernels.weights import LINEAR_TYPES, PackedLinear
from handlers.pipeline.surgery import StageModel


def compile_layers(parts: StageModel) -> str:
    """Have the parts compiled when they are first run; returns what was done."""
    found = [part for layer in _layers(parts) for part in _compilable(layer)]
    for part in found:
        part.compile()
    return f"{len(found)} parts compiled"


def _layers(parts: StageModel) -> list[nn.Module]:
    count = parts.config.get_text_config(decoder=True).num_hidden_layers
    lists = (
        module
        for module in parts.decoder.modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    )
    return list(next(lists, []))


def _compilable(module: nn.Module) -> Iterator[nn.Module]:
    """The largest parts of ``module`` that know neither a layer's number nor packed weights.

    A linear layer by itself is one call already.
    """
    for child in module.children():
        if type(child) in LINEAR_TYPES:
            continue
        inside = list(child.modules())
        if not any(hasattr(m, "layer_idx") or isinstance(m, PackedLinear) for m in inside):
            yield child
        elif len(inside) > 1:
            yield from _compilable(child)
