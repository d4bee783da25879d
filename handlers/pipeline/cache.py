"""The keys and values of one stage's layers, in blocks that the stage's sequences share out.

Every layer has the same blocks, so where a row lies is said once a step and holds for all: a row
writes where its slot's table says, whoever else is in the step. Nothing is padded on the left or
moved when sequences come and go. Rows that lie at equal distances are read in place, as a view;
others are gathered.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from handlers.pipeline.step import BLOCK
from handlers.pipeline.tables import Spread

#: Blocks past the pool: one to write what nobody reads, one of zeros to read.
NUM_SPARE = 2


@dataclass(frozen=True, slots=True)
class View:
    """The part of the cache that a step works on; shared by all layers of a stage."""

    num_rows: int
    #: Positions that are attended to, from 0.
    window: int
    #: Where each token is written [rows * width], in positions of all blocks.
    writes: Tensor
    #: Each row's blocks [rows * blocks of a window]; looked at when there is no spread.
    blocks: Tensor
    spread: Spread | None


class BlockLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]  # transformers has no types here
    """One layer: keys and values, each [blocks + spare, BLOCK, key heads, head size]."""

    is_sliding = False
    is_compileable = False

    def __init__(self, cache: BlockCache) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers has no types here
        self._cache = cache
        #: One token's keys and values, without contents; empty before the layer was ever run.
        self._samples: tuple[Tensor, ...] = ()

    @property
    def block_bytes(self) -> int:
        return sum(BLOCK * sample.nbytes for sample in self._samples)

    @property
    def pools(self) -> tuple[Tensor, ...]:
        return () if self.keys is None or self.values is None else (self.keys, self.values)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Note what a token's keys and values are like; memory is taken by ``allocate``."""
        self._samples = tuple(
            states.new_empty(states.shape[1], states.shape[3])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def allocate(self, num_blocks: int) -> None:
        self.keys = self.values = None  # so that old and new memory are never held together
        if self._samples:
            self.keys, self.values = (
                sample.new_zeros(num_blocks, BLOCK, *sample.shape) for sample in self._samples
            )

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the step's keys and values [rows, heads, width, size]; return all in the window.

        What is returned is laid out with the positions outside the heads, so the last dimension
        is contiguous and the head dimension is not.
        """
        view = self._cache.view
        if view is None:
            self.lazy_initialization(key_states, value_states)
            return key_states, value_states
        return (
            _write_and_read(self.pools[0], key_states, view),
            _write_and_read(self.pools[1], value_states, view),
        )

    def get_seq_length(self) -> int:
        return 0 if self._cache.view is None else self._cache.view.window

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() or query_length, 0

    def get_max_length(self) -> int:
        return self._cache.max_context


class BlockCache(Cache):
    """The layers of one stage, and the view they share."""

    def __init__(self, num_layers: int, max_context: int) -> None:
        self.max_context = max_context
        #: What the step that is being run works on. None is a trial run: nothing is kept, and
        #: the layers note what a token takes.
        self.view: View | None = None
        self._layers = [BlockLayer(self) for _ in range(num_layers)]
        super().__init__(layers=list(self._layers))

    def __repr__(self) -> str:
        return f"<BlockCache layers={len(self.layers)} block_bytes={self.block_bytes}>"

    @property
    def block_bytes(self) -> int:
        """What a block takes in all layers; 0 before the trial run."""
        return sum(layer.block_bytes for layer in self._layers)

    def allocate(self, num_blocks: int) -> None:
        """Take memory for so many blocks and the spare ones, all zero."""
        for layer in self._layers:
            layer.allocate(num_blocks + NUM_SPARE)

    def wipe(self, blocks: Tensor) -> None:
        """Zero the blocks [n]."""
        for layer in self._layers:
            for pool in layer.pools:
                pool.index_fill_(0, blocks, 0.0)

    def copy(self, copies: Iterable[tuple[int, int]]) -> None:
        """Copy blocks (from, to); all are read before any is written."""
        pairs = torch.tensor(list(copies), dtype=torch.long)
        for layer in self._layers:
            for pool in layer.pools:
                sources, targets = pairs.to(pool.device).unbind(1)
                pool.index_copy_(0, targets, pool.index_select(0, sources))


def _write_and_read(pool: Tensor, states: Tensor, view: View) -> Tensor:
    _, block, heads, size = pool.shape
    tokens = pool.view(-1, heads, size)
    tokens.index_copy_(0, view.writes, states.transpose(1, 2).reshape(-1, heads, size))
    if view.spread is not None:
        token = heads * size
        return pool.as_strided(
            (view.num_rows, heads, view.window, size),
            (view.spread.stride * block * token, size, token, 1),
            view.spread.first * block * token,
        )
    gathered = pool.index_select(0, view.blocks).view(view.num_rows, -1, heads, size)
    return gathered[:, : view.window].transpose(1, 2)
