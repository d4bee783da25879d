"""One rank's part of an encoder: some of its layers, and only their weights.

The model's own class is built without weights for as many layers as this rank has, the tensors of
those layers are read from the safetensors files, and on ranks after the first the embeddings are
replaced by nothing. So attention, masks and norms are transformers' own. The last rank also pools
the token vectors into one vector a text, as the model's ``modules.json`` says.

Only encoders that are embeddings followed by a list of equal layers can be cut this way; others
are refused by name rather than served wrongly.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from handlers.pipeline.partition import Cut

#: Model types whose classes have ``embeddings``, then ``encoder.layer``, and nothing between.
FAMILIES: Final = ("bert", "camembert", "roberta", "xlm-roberta")


@dataclass(frozen=True, slots=True)
class Pooling:
    """How token vectors become one vector."""

    #: "mean" over the text's tokens, or "cls", the first.
    mode: str = "mean"
    #: Whether the vector is scaled to length 1.
    is_normalized: bool = False

    @classmethod
    def of(cls, folder: Path) -> Pooling:
        """What the model's files say; without ``modules.json`` the mean, as it is.

        Raises:
            ValueError: the model needs a step that is not done here.
        """
        modules_file = folder / "modules.json"
        if not modules_file.is_file():
            return cls()
        mode, is_normalized = "mean", False
        for module in json.loads(modules_file.read_text(encoding="utf-8")):
            kind = module["type"].rpartition(".")[2]
            if kind == "Pooling":
                mode = _pooling_mode(folder / module["path"] / "config.json")
            elif kind == "Normalize":
                is_normalized = True
            elif kind != "Transformer":
                raise ValueError(
                    f"{modules_file} has a step {kind}; allowed are Transformer, Pooling, Normalize"
                )
        return cls(mode, is_normalized)


def _pooling_mode(config_file: Path) -> str:
    config: dict[str, Any] = json.loads(config_file.read_text(encoding="utf-8"))
    prefix = "pooling_mode_"
    modes = [
        key.removeprefix(prefix) for key, on in config.items() if key.startswith(prefix) and on
    ]
    if not modes and "pooling_mode" in config:
        modes = [str(config["pooling_mode"])]
    names = {"mean_tokens": "mean", "mean": "mean", "cls_token": "cls", "cls": "cls"}
    if len(modes) != 1 or modes[0] not in names:
        raise ValueError(f"{config_file} pools by {modes}; allowed is one of: mean, cls")
    return names[modes[0]]


def read_config(folder: Path) -> Any:
    """The encoder's configuration.

    Raises:
        ValueError: an encoder of this family cannot be split.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"{folder} holds a {config.model_type} model, which the encoder engine cannot split; "
            f"it serves: {', '.join(FAMILIES)}"
        )
    if getattr(config, "is_decoder", False):
        raise ValueError(f"{folder} is configured as a decoder (is_decoder); an encoder is needed")
    return config


def max_positions(config: Any) -> int:
    """Most tokens a text may have in this model."""
    # RoBERTa and its kin number positions from behind the padding token's id.
    offset = 0 if config.model_type == "bert" else config.pad_token_id + 1
    return int(config.max_position_embeddings) - offset


class _Nothing(nn.Module):
    """In place of the embeddings where hidden states come from the rank before."""

    def forward(self, inputs_embeds: Tensor, **_: Any) -> Tensor:
        return inputs_embeds


class EncoderStage(nn.Module):
    """Layers ``cut`` of the encoder in ``folder``, on ``device``."""

    def __init__(self, folder: Path, cut: Cut, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        config = read_config(folder)
        self.is_first, self.is_last = cut[0] == 0, cut[1] == config.num_hidden_layers
        self.hidden_size = int(config.hidden_size)
        self.dtype, self.device = dtype, device
        self._pooling = Pooling.of(folder)
        self._model = _build(config, cut, self.is_first)
        _load(self._model, folder, cut[0], dtype, device)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids on the first rank, hidden states on the others, to hidden states or vectors."""
        if self.is_first:
            kinds = torch.zeros_like(x)
            hidden = self._model(input_ids=x, attention_mask=attention_mask, token_type_ids=kinds)
        else:
            hidden = self._model(inputs_embeds=x, attention_mask=attention_mask)
        states: Tensor = hidden.last_hidden_state
        return self._pool(states, attention_mask) if self.is_last else states.contiguous()

    def _pool(self, states: Tensor, attention_mask: Tensor) -> Tensor:
        states = states.float()
        if self._pooling.mode == "cls":
            vectors = states[:, 0]
        else:
            weights = attention_mask.unsqueeze(-1).to(states.dtype)
            vectors = (states * weights).sum(1) / weights.sum(1)
        if self._pooling.is_normalized:
            vectors = nn.functional.normalize(vectors, dim=1)
        return vectors.contiguous()


def _build(config: Any, cut: Cut, is_first: bool) -> nn.Module:
    config.num_hidden_layers = cut[1] - cut[0]
    with torch.device("meta"):
        model: nn.Module = AutoModel.from_config(  # type: ignore[no-untyped-call]
            config, add_pooling_layer=False
        )
    if not is_first:
        model.embeddings = _Nothing()
    return model.eval().requires_grad_(False)


def _load(
    model: nn.Module, folder: Path, first_layer: int, dtype: torch.dtype, device: torch.device
) -> None:
    """Gives the model its tensors, reading no other."""
    state = {name: None for name, _ in model.named_parameters()}
    files = dict(_checkpoint(folder))
    prefix = f"{model.base_model_prefix}."
    tensors: dict[str, Tensor] = {}
    for name in state:
        stored = _stored_name(name, first_layer)
        stored = stored if stored in files else prefix + stored
        if stored not in files:
            raise ValueError(f"{folder} has no tensor {stored}; its layout is not known")
        with safe_open(files[stored], framework="pt", device=str(device)) as checkpoint:
            tensors[name] = checkpoint.get_tensor(stored).to(dtype)
    model.load_state_dict(tensors, strict=False, assign=True)
    for name, buffer in list(model.named_buffers()):
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, _buffer(leaf, buffer, device))


def _buffer(name: str, like: Tensor, device: torch.device) -> Tensor:
    """What the class would have put there, had it been built with memory."""
    if name == "position_ids":
        return torch.arange(like.shape[-1], device=device).expand(like.shape)
    if name == "token_type_ids":
        return torch.zeros(like.shape, dtype=like.dtype, device=device)
    raise ValueError(f"the model keeps a buffer {name!r}, which the encoder engine does not know")


def _stored_name(name: str, first_layer: int) -> str:
    """A parameter's name in the checkpoint, which counts layers from the model's first."""
    head = "encoder.layer."
    if not name.startswith(head):
        return name
    number, _, rest = name.removeprefix(head).partition(".")
    return f"{head}{int(number) + first_layer}.{rest}"


def _checkpoint(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every tensor's name and the file that has it."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} has no safetensors file; convert the model's weights first")
    for file in files:
        with safe_open(file, framework="pt") as checkpoint:
            for name in checkpoint.keys():  # noqa: SIM118 - it is no dictionary
                yield name, file
