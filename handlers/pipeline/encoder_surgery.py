"""Builds one rank's part of an encoder, with only its weights, as ``surgery`` does for decoders.

The model's own class is built on the meta device and loaded by transformers; layers of other
ranks, the embeddings on ranks after the first, and norms and heads on ranks before the last are
left out while it has no memory yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

from handlers.pipeline import surgery
from handlers.pipeline.partition import Cut
from handlers.pipeline.surgery import Skip

#: The class of transformers that makes a model of a configuration, by task.
AUTO_CLASSES: Final[dict[str, Any]] = {
    "embed": AutoModel,
    "classify": AutoModelForSequenceClassification,
}

#: What several encoders call the parts between their embeddings and first layer.
_INPUT_MODULES: Final = ("embeddings_project", "embeddings_pre_norm")


class Handed(nn.Module):
    """In place of the embeddings: hands on the hidden states among its arguments."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        given = [*args, *kwargs.values()]
        return next(x for x in given if isinstance(x, Tensor) and x.is_floating_point())


@dataclass(frozen=True, slots=True)
class EncoderParts:
    """The modules of one rank."""

    #: With the head of its task; run on the last rank.
    model: Any
    #: The encoder in it; run on the other ranks.
    base: Any
    config: Any
    is_first: bool
    is_last: bool


def build(
    folder: Path, cut: Cut, dtype: torch.dtype, device: torch.device, task: str
) -> EncoderParts:
    """The part that runs the layers ``cut``.

    Raises:
        ValueError: the model is no list of layers behind embeddings, transformers knows no such
            model for the task, or the files lack weights.
    """
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers has no types here
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    num_layers = config.num_hidden_layers
    part = _part_class(_model_class(config, task), cut, num_layers)
    model = surgery.load(part, folder, dtype)
    base = model.base_model
    surgery.compact(base, cut)
    model.eval().requires_grad_(False).to(device)
    return EncoderParts(model, base, config, cut[0] == 0, cut[1] == num_layers)


def shape_of(folder: Path, task: str) -> Any:
    """The whole model without memory."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        return _model_class(config, task)(config)


def count_weights(folder: Path, task: str) -> tuple[tuple[int, ...], int, int]:
    """Parameters of each layer, of what is before the first, and of what is behind the last.

    Raises:
        ValueError: the model is not made of such parts.
    """
    model = shape_of(folder, task)
    base = model.base_model
    if not isinstance(getattr(base, "embeddings", None), nn.Module):
        raise ValueError(
            f"{folder} holds a {base.config.model_type} model, which the encoder engine cannot "
            f"split: it has no embeddings and layers of an encoder"
        )
    layers = base.get_submodule(surgery.layers_path(base, base.config.num_hidden_layers))
    in_layers = tuple(sum(p.numel() for p in layer.parameters()) for layer in layers)
    before = sum(p.numel() for p in base.embeddings.parameters())
    total = sum(p.numel() for p in model.parameters())
    return in_layers, before, total - before - sum(in_layers)


def _model_class(config: Any, task: str) -> Any:
    known = AUTO_CLASSES[task]._model_mapping
    if type(config) not in known:
        raise ValueError(f"transformers has no class for {config.model_type} models to {task}")
    found = known[type(config)]
    return found[0] if isinstance(found, tuple) else found


def _part_class(model_class: Any, cut: Cut, num_layers: int) -> Any:
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        model_class.__init__(self, *args, **kwargs)
        base = self.base_model
        layers = base.get_submodule(surgery.layers_path(base, num_layers))
        is_first, is_last = cut[0] == 0, cut[1] == num_layers
        for index in set(range(num_layers)) - set(range(*cut)):
            layers[index] = Skip()
        if not is_first:
            _leave_out_inputs(base)
        if not is_last:
            _leave_out_outputs(self, base)
        is_headless = self is base or not is_last
        # What a pooler makes of the first token is only asked for by a head.
        if is_headless and getattr(base, "pooler", None) is not None:
            base.pooler = None

    return surgery.part_class(model_class, init)


def _leave_out_inputs(base: Any) -> None:
    for name, _ in list(base.named_children()):
        if name == "embeddings":
            base.embeddings = Handed()
        elif name in _INPUT_MODULES:
            setattr(base, name, Skip())
    if not isinstance(getattr(base, "embeddings", None), Handed):
        raise ValueError(f"{type(base).__name__} has no embeddings of its own to leave out")


def _leave_out_outputs(model: Any, base: Any) -> None:
    for name in surgery.output_modules(base):
        setattr(base, name, Skip())
    for name, module in list(model.named_children()):
        if model is not base and module is not base:
            setattr(model, name, Skip())
