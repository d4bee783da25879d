"""Builds one stage of a decoder out of a transformers model, reading only the stage's weights.

The model's own class is built on the meta device, where weights take no memory. While it is still
there, inside its ``__init__``, every part that belongs to another stage is replaced by a module
without weights. So ``from_pretrained`` itself loads what is left, with its conversions, ties and
casts, and never reads another stage's tensors. Afterwards the layers that stayed are moved
together, numbered from 0, and the configuration is cut to them, so that caches and masks never
look at a layer of another stage.

Not every model can be cut this way. A stage that changes the hidden states before its first layer
(a second scaling, a second position embedding) would answer nonsense, so this is tested at the
end of building and refused.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from handlers.pipeline.partition import Cut

#: Learned absolute positions, which only the first stage adds.
_POSITION_TABLES = ("wpe", "embed_positions")
_FINAL_NORMS = ("ln_f",)


class Skip(nn.Module):
    """In place of what another stage does: hands its input on."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if args else next(iter(kwargs.values()))


class Zero(nn.Module):
    """In place of a position table: adds nothing."""

    def forward(self, *_: Any, **__: Any) -> Tensor:
        return torch.zeros(())


class LastTokens(nn.Module):
    """The output head, at one wanted token of each row instead of at all."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head
        #: Which token of each row [rows].
        self.index = torch.zeros(0, dtype=torch.long)

    @property
    def weight(self) -> Tensor:
        weight = self.head.weight
        assert isinstance(weight, Tensor)
        return weight

    def forward(self, hidden: Tensor) -> Any:
        rows = torch.arange(hidden.shape[0], device=hidden.device)
        return self.head(hidden[rows, self.index].unsqueeze(1))


@dataclass(frozen=True, slots=True)
class StageModel:
    """The modules of one stage."""

    #: The whole model, decoder and head; run on the last stage.
    model: Any
    #: The decoder in it; run on the other stages.
    decoder: Any
    #: The decoder's configuration, cut to the stage's layers.
    config: Any
    is_first: bool
    is_last: bool


def text_config(model_dir: Path) -> Any:
    """The part of a model's configuration that describes its decoder."""
    return AutoConfig.from_pretrained(model_dir).get_text_config(decoder=True)


def build(
    model_dir: Path, cut: Cut, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> StageModel:
    """The stage that runs the decoder layers ``cut``.

    Raises:
        ValueError: the model cannot be cut into stages, or its files lack weights of this stage.
    """
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    whole = AutoConfig.from_pretrained(model_dir)
    config = whole.get_text_config(decoder=True)
    is_first, is_last = cut[0] == 0, cut[1] == config.num_hidden_layers
    model_class = AutoModelForCausalLM._model_mapping[type(whole)]
    stage_class = _stage_class(model_class, cut, config)
    model, info = stage_class.from_pretrained(model_dir, dtype=dtype, output_loading_info=True)
    if lacking := sorted(info["missing_keys"]) + sorted(map(str, info["mismatched_keys"])):
        raise ValueError(f"the weights in {model_dir} lack or misfit {lacking[:4]}")
    decoder = _decoder(model)
    stage_config = _compact(decoder, cut)
    if is_last:
        model.set_output_embeddings(LastTokens(model.get_output_embeddings()))
    model.eval().requires_grad_(False).to(device)
    stage = StageModel(model, decoder, stage_config, is_first, is_last)
    if not is_first:
        _refuse_if_input_is_changed(stage)
    return stage


def _stage_class(model_class: Any, cut: Cut, config: Any) -> Any:
    num_layers = config.num_hidden_layers
    is_tied = bool(getattr(config, "tie_word_embeddings", False))

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        model_class.__init__(self, *args, **kwargs)
        decoder = _decoder(self)
        layers = decoder.get_submodule(_layers_path(decoder, num_layers))
        is_first, is_last = cut[0] == 0, cut[1] == num_layers
        for index in set(range(num_layers)) - set(range(*cut)):
            layers[index] = Skip()
        if not is_first:
            _leave_out_inputs(decoder, keep_embedding=is_tied and is_last)
        if not is_last:
            _leave_out_outputs(self, decoder)

    attributes = {"__init__": init, "_keys_to_ignore_on_load_unexpected": [".*"]}
    return type(model_class.__name__, (model_class,), attributes)


def _leave_out_inputs(decoder: Any, keep_embedding: bool) -> None:
    """``keep_embedding``: a tied head is the embedding, and the last stage needs the head."""
    embedding = decoder.get_input_embeddings()
    if not keep_embedding:
        path = next(name for name, module in decoder.named_modules() if module is embedding)
        _replace(decoder, path, Skip())
    for name, _ in list(decoder.named_children()):
        if name in _POSITION_TABLES:
            setattr(decoder, name, Zero())


def _leave_out_outputs(model: Any, decoder: Any) -> None:
    for name in _final_norms(decoder):
        setattr(decoder, name, Skip())
    model.set_output_embeddings(Skip())
    model.all_tied_weights_keys = {}


def _final_norms(decoder: Any) -> list[str]:
    names = [name for name, _ in decoder.named_children()]
    return [
        name
        for name in names
        if name in _FINAL_NORMS or ("norm" in name.lower() and "embed" not in name.lower())
    ]


def _compact(decoder: Any, cut: Cut) -> Any:
    """Move the stage's layers together; returns the configuration cut to them."""
    config = copy.deepcopy(decoder.config)
    text = config.get_text_config(decoder=True)
    path = _layers_path(decoder, text.num_hidden_layers)
    kept = list(decoder.get_submodule(path))[slice(*cut)]
    for index, layer in enumerate(kept):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index
    _replace(decoder, path, nn.ModuleList(kept))
    text.num_hidden_layers = len(kept)
    if getattr(text, "layer_types", None):
        text.layer_types = list(text.layer_types[slice(*cut)])
    decoder.config = config
    return config


@torch.inference_mode()
def _refuse_if_input_is_changed(stage: StageModel) -> None:
    """A decoder without layers and final norm must hand its input on as it is."""
    decoder, text = stage.decoder, stage.config.get_text_config(decoder=True)
    path = _layers_path(decoder, text.num_hidden_layers)
    layers = decoder.get_submodule(path)
    norms = {name: getattr(decoder, name) for name in _final_norms(decoder)}
    weight = next(stage.model.parameters())
    given = torch.ones(1, 3, text.hidden_size, dtype=weight.dtype, device=weight.device)
    given.mul_(torch.arange(1, 4, device=weight.device)[None, :, None])
    positions = torch.arange(3, device=weight.device)[None]
    try:
        _replace(decoder, path, nn.ModuleList())
        for name in norms:
            setattr(decoder, name, Skip())
        returned = decoder(inputs_embeds=given, position_ids=positions, use_cache=False)
    finally:
        _replace(decoder, path, layers)
        for name, norm in norms.items():
            setattr(decoder, name, norm)
    if not torch.equal(given, returned.last_hidden_state):
        raise ValueError(
            f"{type(stage.model).__name__} cannot be cut into stages: it changes hidden states "
            f"before its first layer; run it as one stage"
        )


def _decoder(model: Any) -> Any:
    return model.get_decoder() if hasattr(model, "get_decoder") else model.base_model


def _layers_path(decoder: Any, num_layers: int) -> str:
    for name, module in decoder.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            return str(name)
    raise ValueError(f"{type(decoder).__name__} has no list of {num_layers} decoder layers")


def _replace(root: Any, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)
