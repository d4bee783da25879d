"""Runs one rank's part of an encoder: some of its layers, and on the last rank what they are for.

To embed, the last rank pools the token vectors into one vector a text, as the model's
``modules.json`` says. To classify, it runs the model's own head: one number for each label.

Attention, masks and norms are transformers' own. Which encoders can be cut is found out by trying
(``encoder_check``).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig

from handlers.pipeline import encoder_surgery
from handlers.pipeline.partition import Cut


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
        ValueError: it is no encoder's.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if getattr(config, "is_decoder", False):
        raise ValueError(f"{folder} is configured as a decoder (is_decoder); an encoder is needed")
    return config


def max_positions(folder: Path, task: str) -> int:
    """Most tokens a text may have in this model."""
    positions = int(read_config(folder).max_position_embeddings)
    for table in encoder_surgery.shape_of(folder, task).modules():
        if isinstance(table, nn.Embedding) and table.num_embeddings == positions:
            # RoBERTa and its kin number positions from behind the padding token's id.
            return positions if table.padding_idx is None else positions - table.padding_idx - 1
    return positions


class EncoderStage(nn.Module):
    """Layers ``cut`` of the encoder in ``folder``, on ``device``."""

    def __init__(
        self,
        folder: Path,
        cut: Cut,
        dtype: torch.dtype,
        device: torch.device,
        task: str = "embed",
    ) -> None:
        """``task``: "embed" or "classify"."""
        super().__init__()
        parts = encoder_surgery.build(folder, cut, dtype, device, task)
        self.is_first, self.is_last = parts.is_first, parts.is_last
        self.hidden_size = int(parts.config.hidden_size)
        self.dtype, self.device = dtype, device
        self._pooling = Pooling.of(folder) if task == "embed" else None
        #: Numbers that come out for each text.
        self.num_outputs = self.hidden_size if task == "embed" else int(parts.config.num_labels)
        self._model = parts.model
        self._base = parts.base

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        """One rank's part of a micro-batch.

        Args:
            x: token ids [rows, length] on the first rank, hidden states [rows, length, hidden] on
                the others.
            attention_mask: bool [rows, length], False where a row is padding.

        Returns:
            Hidden states; on the last rank float32 [rows, outputs], vectors or numbers by label.
        """
        given = {"input_ids" if self.is_first else "inputs_embeds": x}
        given["attention_mask"] = attention_mask
        if self.is_last and self._pooling is None:
            logits: Tensor = self._model(**given).logits
            return logits.float().contiguous()
        states: Tensor = self._base(**given).last_hidden_state
        if self.is_last and self._pooling is not None:
            return _pool(states, attention_mask, self._pooling)
        return states.contiguous()


def _pool(states: Tensor, attention_mask: Tensor, how: Pooling) -> Tensor:
    states = states.float()
    if how.mode == "cls":
        vectors = states[:, 0]
    else:
        weights = attention_mask.unsqueeze(-1).to(states.dtype)
        vectors = (states * weights).sum(1) / weights.sum(1)
    if how.is_normalized:
        vectors = nn.functional.normalize(vectors, dim=1)
    return vectors.contiguous()
