"""Compiles a stage's decoder layers with torch.compile.

One layer's code is compiled once for each shape and used by all layers alike. Shapes are taken as
fixed: rows, width and window repeat, and code for one shape is the fastest.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from handlers.pipeline.surgery import StageModel

#: Shapes that one layer's code may be compiled for; beyond it runs as it was written.
MAX_SHAPES = 64


def compile_layers(parts: StageModel) -> str:
    """Have every decoder layer compiled when it is first run; returns what was done."""
    layers = _layers(parts)
    torch._dynamo.config.recompile_limit = max(MAX_SHAPES, torch._dynamo.config.recompile_limit)
    for layer in layers:
        layer.compile(dynamic=False)
    return f"{len(layers)} layers compiled"


def _layers(parts: StageModel) -> list[nn.Module]:
    count = parts.config.get_text_config(decoder=True).num_hidden_layers
    lists: list[Any] = [
        module
        for module in parts.decoder.modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    return list(lists[0]) if lists else []
