"""Runs one stage: hidden states in, hidden states or logits out, for whatever rows a step has.

The masks are made from positions with the model's own mask function: a token sees the positions
up to its own, within the sliding window where the layer has one. Positions are explicit, so rows
of different lengths share a step without left padding. Width and window change from step to step.
What all layers need is made once a step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from handlers.pipeline.cache import BlockCache, View
from handlers.pipeline.step import BLOCK, Step
from handlers.pipeline.surgery import StageModel
from handlers.pipeline.tables import Placement, Tables

_FULL, _SLIDING = "full_attention", "sliding_attention"


class Stage:
    """A stage's model with the cache of its sequences.

    Blocks are taken by :meth:`allocate`; without it the first step takes as many as fill every
    slot.
    """

    def __init__(self, parts: StageModel, num_slots: int, max_context: int) -> None:
        """``max_context``: positions of a sequence, so the longest prompt and answer together."""
        text = parts.config.get_text_config(decoder=True)
        weight = next(parts.model.parameters())
        self.is_first, self.is_last = parts.is_first, parts.is_last
        self.dtype, self.device = weight.dtype, weight.device
        self.hidden_size: int = text.hidden_size
        self._parts = parts
        self._num_slots, self._max_context = num_slots, max_context
        self._cache = BlockCache(text.num_hidden_layers, max_context)
        self._tables: Tables | None = None
        self._layer_types = set(getattr(text, "layer_types", None) or ())
        self._sliding_window: int | None = getattr(text, "sliding_window", None)
        self._try_out()

    def __repr__(self) -> str:
        kind = type(self._parts.model).__name__
        return f"<Stage {kind} {self._tables!r} dtype={self.dtype} device={self.device}>"

    @property
    def kv_bytes_per_block(self) -> int:
        """What ``BLOCK`` positions of one sequence take on this stage."""
        return self._cache.block_bytes

    @property
    def num_home_blocks(self) -> int:
        """Blocks with which every slot can be full."""
        return self._num_slots * -(-self._max_context // BLOCK)

    def allocate(self, num_blocks: int) -> None:
        """Take memory for so many blocks; what was kept before is lost.

        Raises:
            RuntimeError: there is not so much memory.
        """
        with torch.inference_mode():
            self._cache.allocate(num_blocks)
        self._tables = Tables(self._num_slots, self._max_context, num_blocks)

    def reset(self) -> None:
        """Forget every sequence: the tables are again as after :meth:`allocate`."""
        if self._tables is not None:
            self.allocate(self._tables.scratch)

    @torch.inference_mode()
    def forward(self, step: Step, inputs: Tensor) -> Tensor:
        """Run a step.

        ``inputs``: token ids [rows, width] on the first stage, hidden states [rows, width, hidden]
        on the others.

        Returns:
            The hidden states [rows, width, hidden]; on the last stage the logits after each row's
            last token [rows, vocabulary]. Those of rows without tokens mean nothing.

        Raises:
            ValueError: the step names blocks that do not exist, or none where it writes.
        """
        placement = self._prepare(step)
        positions, last, view = self._on_device(placement)
        self._cache.view = view
        return self._run(inputs.to(self.device), positions, last, placement.window)

    def _prepare(self, step: Step) -> Placement:
        """Bring tables and blocks to where the step wants them."""
        if self._tables is None:
            self.allocate(self.num_home_blocks)
        assert self._tables is not None
        self._tables.change(step.tables)
        placement = self._tables.place(step)
        if step.copies:
            self._cache.copy(step.copies)
        if len(placement.wiped):
            self._cache.wipe(torch.from_numpy(placement.wiped).to(self.device))
        return placement

    def _on_device(self, placement: Placement) -> tuple[Tensor, Tensor, View]:
        """The positions, each row's last token, and the view; they travel as one tensor."""
        parts = (placement.positions, placement.writes, placement.last, placement.blocks)
        flat = torch.from_numpy(np.concatenate([part.ravel() for part in parts])).to(self.device)
        positions, writes, last, blocks = torch.split(flat, [part.size for part in parts])
        num_rows = len(placement.last)
        view = View(num_rows, placement.window, writes, blocks, placement.spread)
        return positions.view(num_rows, -1), last, view

    def _run(self, inputs: Tensor, positions: Tensor, last: Tensor, window: int) -> Tensor:
        arguments: dict[str, Any] = {
            "input_ids" if self.is_first else "inputs_embeds": inputs,
            "attention_mask": self._masks(positions, window),
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

    @torch.inference_mode()
    def _try_out(self) -> None:
        """Run one token, so that every layer says what it keeps of it."""
        position = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        hidden = torch.zeros(1, 1, self.hidden_size, dtype=self.dtype, device=self.device)
        self._cache.view = None
        self._run(position if self.is_first else hidden, position, position[0], 1)

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
