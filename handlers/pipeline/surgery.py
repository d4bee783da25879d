"""Builds one stage of a decoder out of a transformers model, reading only the stage's weights.

The model's own class is built on the meta device, where weights take no memory. While it is still
there, inside its ``__init__``, every part that belongs to another stage is replaced by a module
without weights. So ``from_pretrained`` itself loads what is left, with its conversions, ties and
casts, and never reads another stage's tensors. Afterwards the layers that stayed are moved
together, numbered from 0, and the configuration is cut to them, so that caches and masks never
look at a layer of another stage.

Not every model can be cut this way. A stage that changes the hidden states before its first layer
(a second scaling, a second position embedding) would answer nonsense, so this is tested at the
end of building and refused. Whatever else may be in the way shows in ``family_check``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from handlers.pipeline.partition import Cut

#: What several models call the parts around their layers: learned absolute positions, which only
#: the first stage adds, what else follows the embedding, and what follows the last layer.
_POSITION_TABLES = ("wpe", "embed_positions", "position_embedding", "positions_embed")
_INPUT_MODULES = ("project_in", "word_embeddings_layernorm", "embedding_norm", "embed_norm")
_OUTPUT_MODULES = ("ln_f", "project_out", "final_layernorm")
_LAYER_NUMBERS = ("layer_idx", "layer_id")
_LAYER_LISTS = ("layers", "h", "blocks")


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
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers has no types here
    whole = AutoConfig.from_pretrained(model_dir)
    config = whole.get_text_config(decoder=True)
    is_first, is_last = cut[0] == 0, cut[1] == config.num_hidden_layers
    model_class = AutoModelForCausalLM._model_mapping[type(whole)]
    model = load(_stage_class(model_class, cut, config), model_dir, dtype)
    decoder = _decoder(model)
    stage_config = compact(decoder, cut)
    if is_last:
        model.set_output_embeddings(LastTokens(model.get_output_embeddings()))
    model.eval().requires_grad_(False).to(device)
    stage = StageModel(model, decoder, stage_config, is_first, is_last)
    if not is_first:
        _undo_scaling(stage)
        _refuse_if_input_is_changed(stage)
    return stage


def load(part: Any, folder: Path, dtype: torch.dtype) -> Any:
    """The part of a model that a class of :func:`part_class` leaves, with its weights.

    Raises:
        ValueError: the folder has no safetensors files, or they lack weights of this part.
    """
    if not any(folder.glob("*.safetensors")):
        # Other kinds of files are read whole, by every rank.
        raise ValueError(f"{folder} has no safetensors file; convert the model's weights first")
    model, info = part.from_pretrained(
        folder,
        dtype=dtype,
        local_files_only=True,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    # Both would go on with random numbers in their place.
    if lacking := sorted(info["missing_keys"]) + sorted(map(str, info["mismatched_keys"])):
        raise ValueError(f"the weights in {folder} lack or misfit {lacking[:4]}")
    return model


def _stage_class(model_class: Any, cut: Cut, config: Any) -> Any:
    num_layers = config.num_hidden_layers
    is_tied = bool(getattr(config, "tie_word_embeddings", False))

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        model_class.__init__(self, *args, **kwargs)
        decoder = _decoder(self)
        layers = decoder.get_submodule(layers_path(decoder, num_layers))
        is_first, is_last = cut[0] == 0, cut[1] == num_layers
        for index in set(range(num_layers)) - set(range(*cut)):
            layers[index] = Skip()
        _leave_out_other_kinds(self, decoder)
        if not is_first:
            _leave_out_inputs(decoder, keep_embedding=is_tied and is_last)
        if not is_last:
            _leave_out_outputs(self, decoder)

    return part_class(model_class, init)


def part_class(model_class: Any, init: Callable[..., None]) -> Any:
    """A class that loads what ``init`` leaves of a model, as the model's own class would."""

    def init_weights(self: Any, module: nn.Module) -> None:
        # What a module sets in its parts' weights cannot be set in a part that was left out.
        is_whole = not any(isinstance(part, Skip) for part in module.children())
        if is_whole or any(True for _ in module.buffers(recurse=False)):
            model_class._init_weights(self, module)

    attributes = {
        "__init__": init,
        # Weights are renamed and merged for classes of transformers only, known by their module.
        "__module__": model_class.__module__,
        "_init_weights": init_weights,
        "_keys_to_ignore_on_load_unexpected": [".*"],
    }
    return type(model_class.__name__, (model_class,), attributes)


def _leave_out_other_kinds(model: Any, decoder: Any) -> None:
    """What turns images or sound into embeddings stands beside the decoder; here is only text."""
    base = model.base_model
    if base is not model and base is not decoder:
        for name, module in list(base.named_children()):
            if all(part is not decoder for part in module.modules()):
                setattr(base, name, Skip())


def _leave_out_inputs(decoder: Any, keep_embedding: bool) -> None:
    """``keep_embedding``: a tied head is the embedding, and the last stage needs the head."""
    embedding = decoder.get_input_embeddings()
    if not keep_embedding:
        path = next(name for name, module in decoder.named_modules() if module is embedding)
        replace(decoder, path, Skip())
    for name, _ in list(decoder.named_children()):
        if name in _POSITION_TABLES:
            setattr(decoder, name, Zero())
        elif name in _INPUT_MODULES:
            setattr(decoder, name, Skip())


def _leave_out_outputs(model: Any, decoder: Any) -> None:
    for name in output_modules(decoder):
        setattr(decoder, name, Skip())
    # Only the decoder is run, so nothing behind it is needed.
    for name, module in list(model.named_children()):
        if all(part is not decoder for part in module.modules()):
            setattr(model, name, Skip())
    model.all_tied_weights_keys = {}


def output_modules(decoder: Any) -> list[str]:
    names = [name for name, _ in decoder.named_children()]
    return [
        name
        for name in names
        if name in _OUTPUT_MODULES
        or ("norm" in name.lower() and "embed" not in name.lower() and name not in _INPUT_MODULES)
    ]


def compact(decoder: Any, cut: Cut) -> Any:
    """Move the stage's layers together; returns the configuration cut to them."""
    config = copy.deepcopy(decoder.config)
    text = config.get_text_config(decoder=True)
    num_layers = text.num_hidden_layers
    path = layers_path(decoder, num_layers)
    kept = list(decoder.get_submodule(path))[slice(*cut)]
    for index, layer in enumerate(kept):
        for module in layer.modules():
            for name in _LAYER_NUMBERS:
                if isinstance(getattr(module, name, None), int):
                    setattr(module, name, index)
    replace(decoder, path, nn.ModuleList(kept))
    text.num_hidden_layers = len(kept)
    # Whatever the configuration says of each layer, such as its kind of attention.
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == num_layers:
            setattr(text, name, value[slice(*cut)])
    decoder.config = config
    return config


def _undo_scaling(stage: StageModel) -> None:
    """Hidden states are scaled as embeddings are, before the first stage's first layer only.

    Some decoders do it in ``forward``, by a number that they keep as an attribute.
    """
    given = _probe(stage)
    factor = float(_without_layers(stage, given).flatten()[0] / given.flatten()[0])
    if factor != 1.0:
        for name, value in vars(stage.decoder).items():
            # The factor is what the number is in the weights' type.
            if isinstance(value, float) and float(given.new_tensor(value)) == factor:
                setattr(stage.decoder, name, 1.0)


def _refuse_if_input_is_changed(stage: StageModel) -> None:
    """A decoder without layers and final norm must hand its input on as it is."""
    given = _probe(stage)
    if not torch.equal(given, _without_layers(stage, given)):
        raise ValueError(
            f"{type(stage.model).__name__} cannot be cut into stages: it changes hidden states "
            f"before its first layer; run it as one stage"
        )


def _probe(stage: StageModel) -> Tensor:
    """Hidden states [1, 3, hidden] that show a shift as well as a scaling."""
    text = stage.config.get_text_config(decoder=True)
    weight = next(stage.model.parameters())
    given = torch.ones(1, 3, text.hidden_size, dtype=weight.dtype, device=weight.device)
    return given * torch.arange(1, 4, device=weight.device)[None, :, None].to(weight.dtype)


@torch.inference_mode()
def _without_layers(stage: StageModel, given: Tensor) -> Tensor:
    """What the decoder makes of hidden states when its layers and final norm do nothing."""
    decoder, text = stage.decoder, stage.config.get_text_config(decoder=True)
    path = layers_path(decoder, text.num_hidden_layers)
    layers = decoder.get_submodule(path)
    norms = {name: getattr(decoder, name) for name in output_modules(decoder)}
    positions = torch.arange(given.shape[1], device=given.device)[None]
    try:
        replace(decoder, path, nn.ModuleList())
        for name in norms:
            setattr(decoder, name, Skip())
        returned = decoder(inputs_embeds=given, position_ids=positions, use_cache=False)
    finally:
        replace(decoder, path, layers)
        for name, norm in norms.items():
            setattr(decoder, name, norm)
    hidden: Tensor = returned.last_hidden_state
    return hidden


def _decoder(model: Any) -> Any:
    return model.get_decoder() if hasattr(model, "get_decoder") else model.base_model


def layers_path(decoder: Any, num_layers: int) -> str:
    """The outermost list that is as long as the decoder is deep."""
    paths = [
        str(name)
        for name, module in decoder.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == num_layers
    ]
    if not paths:
        raise ValueError(f"{type(decoder).__name__} has no list of {num_layers} decoder layers")
    return min(paths, key=lambda path: (path.count("."), path not in _LAYER_LISTS))


def replace(root: Any, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)
