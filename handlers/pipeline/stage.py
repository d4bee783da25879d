"""Runs one stage: hidden states in, hidden states or logits out, for whatever rows a step has.

The masks are made from positions with the model's own mask function: a token sees the positions
up to its own, within the sliding window where the layer has one. Positions are explicit, so rows
of different lengths share a step without left padding. Width and window change from step to step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from handlers.pipeline.cache import SlotCache, View
from handlers.pipeline.step import Step
from handlers.pipeline.surgery import StageModel

_FULL, _SLIDING = "full_attention", "sliding_attention"


class Stage:
    """A stage's model with the cache of its sequences."""

    def __init__(self, parts: StageModel, num_slots: int, context: int) -> None:
        """``context``: positions of a sequence, so the longest prompt and answer together."""
        text = parts.config.get_text_config(decoder=True)
        weight = next(parts.model.parameters())
        self.is_first, self.is_last = parts.is_first, parts.is_last
        self.dtype, self.device = weight.dtype, weight.device
        self.hidden_size: int = text.hidden_size
        self._parts = parts
        self._context = context
        self._cache = SlotCache(text.num_hidden_layers, num_slots, context)
        self._layer_types = set(getattr(text, "layer_types", None) or ())
        self._sliding_window: int | None = getattr(text, "sliding_window", None)

    def __repr__(self) -> str:
        kind = type(self._parts.model).__name__
        return f"<Stage {kind} {self._cache!r} dtype={self.dtype} device={self.device}>"

    @torch.inference_mode()
    def forward(self, step: Step, inputs: Tensor) -> Tensor:
        """Run a step.

        ``inputs``: token ids [rows, width] on the first stage, hidden states [rows, width, hidden]
        on the others.

        Returns:
            The hidden states; on the last stage the logits after each row's last token
            [rows, vocabulary].
        """
        positions, last = self._place(step)
        arguments: dict[str, Any] = {
            "input_ids" if self.is_first else "inputs_embeds": inputs.to(self.device),
            "attention_mask": self._masks(positions, step.window),
            "position_ids": positions,
            "past_key_values": self._cache,
            "use_cache": True,
        }
        if not self.is_last:
            hidden: Tensor = self._parts.decoder(**arguments).last_hidden_state
            return hidden
        self._parts.model.get_output_embeddings().index = last
        logits: Tensor = self._parts.model(**arguments).logits
        return logits[:, -1]

    def _place(self, step: Step) -> tuple[Tensor, Tensor]:
        """Point the cache at the step's rows; returns positions and each row's last token."""
        table = torch.tensor([[row.slot, row.start, row.num_tokens] for row in step.rows])
        slots, starts, counts = table.to(self.device).unbind(1)
        offsets = torch.arange(step.width, device=self.device)[None]
        positions = starts[:, None] + offsets
        is_padding = offsets >= counts[:, None]
        # Padding is written to the scratch position, behind every mask; the position it is told
        # to be at only has to exist.
        written = positions.masked_fill(is_padding, self._context)
        self._cache.view = View(slots, written, step.window, _span(step))
        return positions.clamp(max=self._context - 1), (counts - 1).clamp(min=0)

    def _masks(self, positions: Tensor, window: int) -> Any:
        """One mask; by layer type for a model that has several."""
        if len(self._layer_types) > 1 or self._layer_types == {_SLIDING}:
            full = self._mask(positions, window, None)
            return {_FULL: full, _SLIDING: self._mask(positions, window, self._sliding_window)}
        sliding = None if self._layer_types else self._sliding_window
        return self._mask(positions, window, sliding)

    def _mask(self, positions: Tensor, window: int, sliding: int | None) -> Any:
        config = self._parts.config
        make = ALL_MASK_ATTENTION_FUNCTIONS[config._attn_implementation]
        return make(
            batch_size=positions.shape[0],
            q_length=positions.shape[1],
            kv_length=window,
            mask_function=_sees(positions, sliding),
            attention_mask=None,
            allow_is_causal_skip=False,
            dtype=self.dtype,
            config=config,
            use_vmap=False,
            device=positions.device,
        )


def _sees(positions: Tensor, sliding: int | None) -> Callable[..., Tensor]:
    def sees(batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        position = positions[batch, query]
        if sliding is None:
            return key <= position
        return (key <= position) & (key > position - sliding)

    return sees


def _span(step: Step) -> tuple[int, int] | None:
    first, count = step.rows[0].slot, len(step.rows)
    is_span = all(row.slot == first + index for index, row in enumerate(step.rows))
    return (first, first + count) if is_span else None
