"""Says where the rows of a step lie: which block holds which position of which slot.

Decided once a step, on the host, for all layers of a stage. Two blocks past the pool belong to
nobody: *scratch*, which padding and rows without tokens write to and nobody reads, and *void*,
which is always zero and stands for blocks a row has not reached.

What a row reads past its own end lies behind the mask, but a masked value is still multiplied by
zero, and zero times not-a-number is not a number. So what a slot reaches for the first time is
wiped before: a sequence whose numbers overflowed spoils none that come after it.

Knows nothing of layers, heads or torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from handlers.pipeline.step import BLOCK, Step

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Spread:
    """Rows whose blocks follow one another, the rows at equal distances: read in place."""

    #: The first row's first block.
    first: int
    #: Blocks from one row's first to the next row's; 0 when all rows read the same blocks.
    stride: int


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a step's tokens are and what they attend to."""

    #: What the model is told [rows, width]; padding is told some position that exists.
    positions: Integers
    #: Where each token is written, counted in positions of the whole pool [rows * width].
    writes: Integers
    #: Each row's last token [rows].
    last: Integers
    #: The blocks of each row's window [rows * blocks of a window].
    blocks: Integers
    #: Positions from 0 that are attended to.
    window: int
    #: How to read in place; None when the blocks have to be gathered.
    spread: Spread | None
    #: Blocks to wipe before they are used.
    wiped: Integers


class Tables:
    """The blocks of every slot."""

    def __init__(self, num_slots: int, max_context: int, num_blocks: int) -> None:
        """``num_blocks``: of the pool, scratch and void not counted."""
        self._max_context = max_context
        self._num_blocks = num_blocks
        self._width = -(-max_context // BLOCK)
        self._blocks = np.full((num_slots, self._width), self.scratch, dtype=np.int64)
        #: Positions each slot has been written to, and blocks of it that hold nothing foreign.
        self._reached = np.zeros(num_slots, dtype=np.int64)
        self._clean = np.zeros(num_slots, dtype=np.int64)
        #: Whether the blocks past a slot's end are its own.
        self._is_home = num_blocks >= self._blocks.size
        if self._is_home:
            self._blocks[:] = np.arange(self._blocks.size).reshape(self._blocks.shape)

    def __repr__(self) -> str:
        slots = len(self._blocks)
        return f"<Tables slots={slots} blocks={self._num_blocks} is_home={self._is_home}>"

    @property
    def scratch(self) -> int:
        return self._num_blocks

    @property
    def void(self) -> int:
        return self._num_blocks + 1

    def change(self, changes: Iterable[tuple[int, int, int]]) -> None:
        """Apply a step's ``tables``.

        Raises:
            ValueError: a block that the pool does not have.
        """
        for slot, index, block in changes:
            if not 0 <= block < self._num_blocks:
                raise ValueError(f"there is no block {block}: the pool has {self._num_blocks}")
            if self._is_home:
                self._is_home = False
                self._clean = _num_blocks(self._reached)
            self._blocks[slot, index] = block

    def place(self, step: Step) -> Placement:
        """Where the step's rows lie.

        Raises:
            ValueError: a row has no block for a position it writes, or leaves its context.
        """
        table = np.array([[r.slot, r.start, r.num_tokens] for r in step.rows], dtype=np.int64)
        slots, starts, counts = table.T
        offsets = np.arange(step.width)
        positions = np.minimum(starts[:, None] + offsets, self._max_context - 1)
        ends = np.where(counts > 0, starts + counts, 0)
        writes = self._writes(slots, positions, offsets, counts)
        num_blocks = -(-step.window // BLOCK)
        # At home the blocks past a row's end are its own too; reading them keeps rows in place.
        limits = np.full_like(ends, num_blocks) if self._is_home else _num_blocks(ends)
        indices = np.arange(num_blocks)
        blocks = np.where(indices < limits[:, None], self._blocks[slots, :num_blocks], self.void)
        return Placement(
            positions,
            writes.ravel(),
            np.maximum(counts - 1, 0),
            blocks.ravel(),
            step.window,
            _spread(blocks),
            self._wiped(table[counts > 0], limits[counts > 0]),
        )

    def _writes(
        self, slots: Integers, positions: Integers, offsets: Integers, counts: Integers
    ) -> Integers:
        blocks = self._blocks[slots[:, None], positions // BLOCK]
        is_written = offsets < counts[:, None]
        if (is_written & (blocks == self.scratch)).any():
            row = int((is_written & (blocks == self.scratch)).any(axis=1).argmax())
            raise ValueError(f"slot {slots[row]} has no block for a position it is to write")
        return np.where(is_written, blocks, self.scratch) * BLOCK + positions % BLOCK

    def _wiped(self, table: Integers, limits: Integers) -> Integers:
        """The blocks that the rows of ``table`` get to for the first time."""
        slots, starts, counts = table.T
        # A row that starts before what its slot has reached is a new sequence's.
        self._clean[slots[starts < self._reached[slots]]] = 0
        firsts = np.maximum(self._clean[slots], _num_blocks(starts))
        self._reached[slots] = starts + counts
        self._clean[slots] = np.maximum(firsts, limits)
        reached = [
            self._blocks[slot, first:limit]
            for slot, first, limit in zip(slots, firsts, limits, strict=True)
            if first < limit
        ]
        return np.concatenate(reached) if reached else np.zeros(0, dtype=np.int64)


def _num_blocks(positions: Integers) -> Integers:
    """Blocks that hold so many positions."""
    return -(-positions // BLOCK)


def _spread(blocks: Integers) -> Spread | None:
    firsts = blocks[:, 0]
    stride = int(firsts[1] - firsts[0]) if len(firsts) > 1 else 0
    rows, indices = (np.arange(size) for size in blocks.shape)
    wanted = firsts[0] + stride * rows[:, None] + indices
    return Spread(int(firsts[0]), stride) if stride >= 0 and (blocks == wanted).all() else None
