"""Builds pieces of a decoder with random weights, to measure what the real ones will cost.

The model's own class is built whole on the meta device, where that takes no memory and reads no
checkpoint. It tells exactly what each part weighs and which layers are alike. A piece is some
copies of one layer, or the head, in an otherwise empty decoder on the real device; it runs as a
``Stage`` does, so that what is timed is what is served.

Random weights are one short random row, repeated: timing asks only for ordinary numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from handlers.pipeline.surgery import LastTokens, Skip, StageModel, Zero

#: Random numbers before they repeat.
_PERIOD: Final = 1 << 20
_STD: Final = 0.02


@dataclass(frozen=True, slots=True)
class Kind:
    """Layers that are alike."""

    #: One of them, on the meta device.
    layer: nn.Module
    #: Its name in the configuration's ``layer_types``; None where the model has none.
    layer_type: str | None
    #: How many there are.
    count: int
    weight_bytes: int


class Skeleton:
    """A decoder without contents."""

    def __init__(self, model_dir: Path, dtype: torch.dtype) -> None:
        """Reads the configuration only.

        Raises:
            ValueError: the model is no decoder of transformers with a list of layers.
        """
        config = AutoConfig.from_pretrained(model_dir)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]  # upstream
        model.eval().requires_grad_(False)
        self.dtype = dtype
        self._model, self._decoder = model, _decoder(model)
        text = config.get_text_config(decoder=True)
        self.text_config = text
        self.hidden_size: int = text.hidden_size
        self._path, layers = _layers(self._decoder, text.num_hidden_layers)
        types = list(getattr(text, "layer_types", None) or [None] * len(layers))
        self._learn_kinds(list(layers), types)
        self._learn_sizes(layers)
        self._empty()

    def _learn_kinds(self, layers: Sequence[nn.Module], types: Sequence[str | None]) -> None:
        signatures = [
            (kind, *((name, weight.shape) for name, weight in layer.named_parameters()))
            for layer, kind in zip(layers, types, strict=True)
        ]
        distinct = list(dict.fromkeys(signatures))
        #: For each decoder layer, which of ``kinds`` it is.
        self.kind_of_layer = tuple(map(distinct.index, signatures))
        self.kinds = [
            Kind(layers[first], types[first], signatures.count(signature), _bytes(layers[first]))
            for signature in distinct
            for first in [signatures.index(signature)]
        ]

    def _learn_sizes(self, layers: nn.Module) -> None:
        embedding, head = self._decoder.get_input_embeddings(), self._model.get_output_embeddings()
        tables = [m for m in _outside(self._decoder, layers) if isinstance(m, nn.Embedding)]
        self._tables = tables
        self.tied_bytes = _bytes(head) if head.weight is embedding.weight else 0
        self.vocabulary_size: int = head.weight.shape[0]
        self.embedding_bytes = sum(map(_bytes, tables))
        inputs = self.embedding_bytes + _bytes(layers)
        self.head_bytes = _bytes(head) + max(0, _bytes(self._decoder) - inputs)

    def _empty(self) -> None:
        """Take everything out that is not measured or that only the first stage runs."""
        embedding = self._decoder.get_input_embeddings()
        for table in self._tables:
            _replace(self._decoder, table, Skip() if table is embedding else Zero())
        self._model.set_output_embeddings(Skip())
        self._model.all_tied_weights_keys = {}
        for module in _beside(self._model, self._decoder):
            _replace(self._model, module, Skip())
        _set(self._decoder, self._path, nn.ModuleList())

    def layers(self, kind: Kind, num_copies: int, device: torch.device) -> StageModel:
        """A stage of so many copies of one layer; none leaves what every stage does anyway."""
        copies = [copy.deepcopy(kind.layer) for _ in range(num_copies)]
        for index, layer in enumerate(copies):
            for module in layer.modules():
                if hasattr(module, "layer_idx"):
                    module.layer_idx = index  # type: ignore[assignment]  # an attribute, no weight
        model = copy.deepcopy(self._model)
        decoder = _decoder(model)
        _set(decoder, self._path, nn.ModuleList(copies))
        decoder.config = self._config(kind, num_copies)
        _fill(model, device)
        return StageModel(model, decoder, decoder.config, is_first=False, is_last=False)

    def head(self, vocabulary_size: int, device: torch.device) -> StageModel:
        """A stage of no layers and a head with so many tokens."""
        model = copy.deepcopy(self._model)
        with torch.device("meta"):
            head = nn.Linear(self.hidden_size, vocabulary_size, bias=False, dtype=self.dtype)
        model.set_output_embeddings(LastTokens(head))
        decoder = _decoder(model)
        decoder.config = self._config(self.kinds[0], 0)
        _fill(model, device)
        return StageModel(model, decoder, decoder.config, is_first=False, is_last=True)

    def _config(self, kind: Kind, num_layers: int) -> Any:
        config = copy.deepcopy(self._decoder.config)
        text = config.get_text_config(decoder=True)
        text.num_hidden_layers = num_layers
        if kind.layer_type is not None:
            text.layer_types = [kind.layer_type] * num_layers
        return config


def random_tensor(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Ordinary numbers, the same each time."""
    tensor = torch.empty(shape, dtype=dtype, device=device)
    _fill_tensor(tensor)
    return tensor


def _fill(model: Any, device: torch.device) -> None:
    """Give the model memory on the device, and numbers."""
    model.to_empty(device=device)
    with torch.no_grad():
        for parameter in model.parameters():
            _fill_tensor(parameter)
        for buffer in model.buffers():
            buffer.zero_()
        for module in model.modules():
            # Tables such as rotary angles are no weights: the model computes them.
            if list(module.buffers(recurse=False)) and not list(module.parameters(recurse=False)):
                model._init_weights(module)


def _fill_tensor(tensor: Tensor) -> None:
    flat = tensor.detach().view(-1)
    generator = torch.Generator().manual_seed(0)
    row = torch.randn(min(_PERIOD, len(flat)), generator=generator).mul_(_STD)
    row = row.to(dtype=flat.dtype, device=flat.device)
    for start in range(0, len(flat), _PERIOD):
        piece = flat[start : start + _PERIOD]
        piece.copy_(row[: len(piece)])


def _decoder(model: Any) -> Any:
    return model.get_decoder() if hasattr(model, "get_decoder") else model.base_model


def _layers(decoder: Any, num_layers: int) -> tuple[str, nn.ModuleList]:
    for name, module in decoder.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            return name, module
    raise ValueError(f"{type(decoder).__name__} has no list of {num_layers} decoder layers")


def _outside(root: nn.Module, part: nn.Module) -> list[nn.Module]:
    """The modules of ``root`` that are not in ``part``."""
    inside = set(part.modules())
    return [module for module in root.modules() if module not in inside]


def _beside(model: nn.Module, decoder: nn.Module) -> list[nn.Module]:
    """Modules with weights that neither hold the decoder nor are in it, such as a vision tower."""
    found: list[nn.Module] = []
    for module in _outside(model, decoder):
        is_above = decoder in set(module.modules())
        is_in_found = any(module in set(each.modules()) for each in found)
        if not is_above and not is_in_found and list(module.parameters()):
            found.append(module)
    return found


def _replace(root: nn.Module, old: nn.Module, new: nn.Module) -> None:
    _set(root, next(name for name, module in root.named_modules() if module is old), new)


def _set(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)


def _bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())
