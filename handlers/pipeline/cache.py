"""The keys and values of one stage's layers, one slot for each sequence.

A slot's index along the length is the token's position: a row writes where it stands, whoever
else is in the step. Nothing is packed, padded on the left or moved when sequences come and go,
and what a slot held before lies behind the mask until it is overwritten. Past the last position
there is a *scratch* position, where padding is written and nobody looks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


@dataclass(slots=True)
class View:
    """Which part of the cache the current step works on; shared by all layers of a stage."""

    #: Slot of each row [rows].
    slots: Tensor
    #: Where each token is written [rows, width].
    positions: Tensor
    #: Positions that are attended to, from 0.
    window: int
    #: The slots as a range when they are neighbours, so that they are read in place.
    span: tuple[int, int] | None


class SlotLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer: [slots, key heads, length + scratch, head size], allocated at the first write."""

    is_sliding = False
    is_compileable = False

    def __init__(self, cache: SlotCache) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        slots, length = self._cache.num_slots, self._cache.length + 1
        self.keys = key_states.new_zeros(slots, key_states.shape[1], length, key_states.shape[3])
        self.values = value_states.new_zeros(
            slots, value_states.shape[1], length, value_states.shape[3]
        )
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the step's keys and values; return all that its rows attend to."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        view = self._cache.view
        rows = view.slots[:, None]
        self.keys[rows, :, view.positions] = key_states.transpose(1, 2)
        self.values[rows, :, view.positions] = value_states.transpose(1, 2)
        which = view.slots if view.span is None else slice(*view.span)
        return self.keys[which, :, : view.window], self.values[which, :, : view.window]

    def get_seq_length(self) -> int:
        return self._cache.view.window

    def get_mask_sizes(self, _query_length: int) -> tuple[int, int]:
        return self._cache.view.window, 0

    def get_max_length(self) -> int:
        return self._cache.length


class SlotCache(Cache):
    """The layers of one stage, and the view they share."""

    def __init__(self, num_layers: int, num_slots: int, length: int) -> None:
        self.num_slots = num_slots
        #: Positions of a slot, the scratch position not counted.
        self.length = length
        nothing = torch.empty(0, dtype=torch.long)
        self.view = View(nothing, nothing, 0, None)
        super().__init__(layers=[SlotLayer(self) for _ in range(num_layers)])

    def __repr__(self) -> str:
        return f"<SlotCache layers={len(self.layers)} slots={self.num_slots} length={self.length}>"
