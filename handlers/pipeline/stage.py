"""Runs one stage: hidden states in, hidden states or logits out, for whatever rows a step has.

The masks are made from positions with the model's own mask function: a token sees the positions
up to its own, within the sliding window where the layer has one. Positions are explicit, so rows
of different lengths share a step without left padding. Width and window change from step to step.
What all layers need is made once a step. What differs between steps of one layout is in tensors,
so that a device can record a decode step and replay it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from handlers.pipeline.cache import BlockCache, View
from handlers.pipeline.kernels.graphs import Graphs, Recorder, Tensors
from handlers.pipeline.step import BLOCK, Step
from handlers.pipeline.surgery import StageModel
from handlers.pipeline.tables import Placement, Spread, Tables

_FULL, _SLIDING = "full_attention", "sliding_attention"
#: The name of the only mask of a model whose layers are all of one type.
_ONLY = "mask"


@dataclass(frozen=True, slots=True)
class Layout:
    """What the shapes and addresses of a step depend on."""

    num_rows: int
    width: int
    #: Positions that are attended to, from 0.
    window: int
    spread: Spread | None


class Stage:
    """A stage's model with the cache of its sequences.

    Blocks are taken by :meth:`allocate`; without it the first step takes as many as fill every
    slot.
    """

    def __init__(
        self,
        parts: StageModel,
        num_slots: int,
        max_context: int,
        recorder: Recorder | None = None,
    ) -> None:
        """``max_context``: positions of a sequence, so the longest prompt and answer together.

        ``recorder``: records decode steps; None runs every step as the model's code has it.
        """
        text = parts.config.get_text_config(decoder=True)
        weight = next(parts.model.parameters())
        self.is_first, self.is_last = parts.is_first, parts.is_last
        self.dtype, self.device = weight.dtype, weight.device
        self.hidden_size: int = text.hidden_size
        self._parts = parts
        self._num_slots, self._max_context = num_slots, max_context
        self._cache = BlockCache(text.num_hidden_layers, max_context)
        self._tables: Tables | None = None
        self._graphs = None if recorder is None else Graphs(recorder)
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
        if self._graphs is not None:
            self._graphs.clear()
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
        layout = Layout(len(step.rows), step.width, step.window, placement.spread)
        tensors = self._tensors(placement, layout, inputs)
        work = partial(self._run, layout)
        if self._graphs is not None and step.width == 1:
            return self._graphs.run(layout, work, tensors)
        return work(tensors)

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

    def _tensors(self, placement: Placement, layout: Layout, inputs: Tensor) -> dict[str, Tensor]:
        """All that differs between steps of one layout; the integers travel as one tensor."""
        parts = (placement.positions, placement.writes, placement.last, placement.blocks)
        integers = torch.from_numpy(np.concatenate([part.ravel() for part in parts]))
        integers = integers.to(self.device)
        positions, *_ = _split(integers, layout)
        masks = self._masks(positions, layout.window)
        named = masks if isinstance(masks, dict) else {_ONLY: masks}
        return {"inputs": inputs.to(self.device), "integers": integers, **named}

    def _run(self, layout: Layout, tensors: Tensors) -> Tensor:
        positions, writes, last, blocks = _split(tensors["integers"], layout)
        self._cache.view = View(layout.num_rows, layout.window, writes, blocks, layout.spread)
        masks = {name: tensors[name] for name in (_FULL, _SLIDING) if name in tensors}
        return self._call(tensors["inputs"], positions, last, masks or tensors[_ONLY])

    def _call(self, inputs: Tensor, positions: Tensor, last: Tensor, masks: Any) -> Tensor:
        arguments: dict[str, Any] = {
            "input_ids" if self.is_first else "inputs_embeds": inputs,
            "attention_mask": masks,
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
        inputs = position if self.is_first else hidden
        self._call(inputs, position, position[0], self._masks(position, 1))

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


def _split(integers: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Positions [rows, width], writes [rows * width], last tokens [rows], and blocks."""
    num_tokens = layout.num_rows * layout.width
    num_blocks = integers.numel() - 2 * num_tokens - layout.num_rows
    sizes = [num_tokens, num_tokens, layout.num_rows, num_blocks]
    positions, writes, last, blocks = torch.split(integers, sizes)
    return positions.view(layout.num_rows, layout.width), writes, last, blocks


def _sees(positions: Tensor, sliding: int | None) -> Callable[..., Tensor]:
    def sees(batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        position = positions[batch, query]
        if sliding is None:
            return key <= position
        return (key <= position) & (key > position - sliding)

    return sees
