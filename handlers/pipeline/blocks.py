"""Decides which blocks of keys and values a slot uses, and what is found again in them.

Two layouts with one interface. In the *home* layout a slot owns blocks for a whole context, so no
table ever changes and rows are read in place; a prefix found in another slot's home is copied. In
the *paged* layout a slot is given blocks as its tokens need them, and shares those that another
slot filled with the same tokens. Only full blocks are shared or found again; they are never
written while anyone uses them.

Changes of tables and copies are kept until :meth:`Blocks.flush`, whose step must be the next one
issued: stages carry them out before its rows, and after the rows of every step before.
"""

# ruff: noqa: ARG002  # the home layout needs less than both layouts are given
from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Protocol

from handlers.pipeline.prefix_cache import Contents, Key
from handlers.pipeline.step import BLOCK


@dataclass(frozen=True, slots=True)
class Changes:
    """What a step tells the stages before its rows; the fields are those of ``Step``."""

    tables: tuple[tuple[int, int, int], ...] = ()
    copies: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sequence was admitted."""

    slot: int
    #: Blocks from the first that hold its tokens already.
    num_found: int


class Blocks(Protocol):
    """What both layouts do."""

    def admit(
        self, keys: Items[Key], num_tokens: int, slots: Items[int], reserve: int
    ) -> Place | None:
        """Give one of the free ``slots``, and blocks for ``num_tokens`` tokens.

        ``keys``: of the blocks that may be found instead of computed. ``slots``: the one to be
        preferred first. ``reserve``: blocks to leave for those that run.

        Returns:
            None when there are not enough blocks; nothing has changed then.
        """

    def num_found(self, keys: Items[Key]) -> int:
        """How many of the keys would be found, from the first."""

    def grow(self, slot: int, num_tokens: int) -> bool:
        """Make sure of blocks for so many tokens; False: there is none left."""

    def write(self, slot: int, start: int, end: int, keys: Items[Key]) -> None:
        """The step to be issued writes these positions; ``keys``: the sequence's, from 0."""

    def release(self, slot: int, *, keeps: bool) -> None:
        """The slot is free; ``keeps``: what its blocks hold may be found again."""

    def flush(self) -> Changes:
        """What the next step must tell."""

    def reset(self) -> None:
        """No slot has a block, and no block holds anything."""

    @property
    def num_used(self) -> int:
        """Blocks that slots hold tokens in."""

    @property
    def num_cached(self) -> int:
        """Blocks that no slot uses and that may be found again."""


class Home:
    """Slot ``s`` owns the blocks ``s * c`` to ``s * c + c - 1``."""

    def __init__(self, blocks_per_slot: int, unit: int, *, finds: bool) -> None:
        """``unit``: blocks are found in multiples of it. ``finds``: whether any is."""
        self._each, self._unit, self._finds = blocks_per_slot, unit, finds
        self._contents = Contents()
        #: Positions written in each slot that is taken.
        self._ends: dict[int, int] = {}
        #: Copies to tell: to -> (from, key).
        self._copies: dict[int, tuple[int, Key]] = {}

    def __repr__(self) -> str:
        return f"<Home used={self.num_used} cached={self.num_cached}>"

    def admit(
        self, keys: Items[Key], num_tokens: int, slots: Items[int], reserve: int
    ) -> Place | None:
        slot = max(slots, key=lambda each: self._num_own(each, keys))
        num_own = self._num_own(slot, keys)
        num_found = self.num_found(keys)
        for index in range(num_own, num_found):
            block, source = slot * self._each + index, self._contents.holder(keys[index])
            assert source is not None
            if self._contents.key_of(block) != keys[index]:
                # What it holds is known from the flush on: so no copy is the source of a copy.
                self._contents.forget(block)
                self._copies[block] = (source, keys[index])
        self._ends[slot] = num_found * BLOCK
        return Place(slot, num_found)

    def num_found(self, keys: Items[Key]) -> int:
        return self._contents.num_found(keys) // self._unit * self._unit

    def grow(self, slot: int, num_tokens: int) -> bool:
        return num_tokens <= self._each * BLOCK

    def write(self, slot: int, start: int, end: int, keys: Items[Key]) -> None:
        self._ends[slot] = end
        first = slot * self._each
        for index in range(start // BLOCK, -(-end // BLOCK)):
            self._contents.forget(first + index)
        if self._finds:
            for index in range(start // BLOCK, min(end // BLOCK, len(keys))):
                self._contents.learn(first + index, keys[index])

    def release(self, slot: int, *, keeps: bool) -> None:
        del self._ends[slot]
        for block in range(slot * self._each, (slot + 1) * self._each):
            self._copies.pop(block, None)
            if not keeps:
                self._contents.forget(block)

    def flush(self) -> Changes:
        copies = tuple((source, to) for to, (source, _) in self._copies.items())
        for to, (_, key) in self._copies.items():
            self._contents.learn(to, key)
        self._copies.clear()
        return Changes(copies=copies)

    def reset(self) -> None:
        self._contents.clear()
        self._ends.clear()
        self._copies.clear()

    @property
    def num_used(self) -> int:
        return sum(-(-end // BLOCK) for end in self._ends.values())

    @property
    def num_cached(self) -> int:
        def is_used(block: int) -> bool:
            return block % self._each * BLOCK < self._ends.get(block // self._each, 0)

        return sum(not is_used(block) for block in self._contents)

    def _num_own(self, slot: int, keys: Items[Key]) -> int:
        """How many of the keys the slot's own blocks hold."""
        first = slot * self._each
        for index, key in enumerate(keys):
            if self._contents.key_of(first + index) != key:
                return index
        return len(keys)


class Paged:
    """Blocks from a list, shared where their contents are the same."""

    def __init__(self, num_slots: int, num_blocks: int, unit: int, *, finds: bool) -> None:
        """``unit``: blocks are found in multiples of it. ``finds``: whether any is."""
        self._num_blocks, self._unit, self._finds = num_blocks, unit, finds
        self._tables: list[list[int]] = [[] for _ in range(num_slots)]
        self.reset()

    def __repr__(self) -> str:
        return f"<Paged used={self.num_used}/{self._num_blocks} cached={self.num_cached}>"

    def admit(
        self, keys: Items[Key], num_tokens: int, slots: Items[int], reserve: int
    ) -> Place | None:
        num_found = self.num_found(keys)
        found = [self._contents.holder(key) for key in keys[:num_found]]
        num_free = len(self._free) + len(self._idle) - sum(block in self._idle for block in found)
        if -(-num_tokens // BLOCK) - num_found + reserve > num_free:
            return None
        for block in found:
            assert block is not None
            self._use(slots[0], block)
        is_enough = self.grow(slots[0], num_tokens)
        assert is_enough
        return Place(slots[0], num_found)

    def num_found(self, keys: Items[Key]) -> int:
        return self._contents.num_found(keys) // self._unit * self._unit

    def grow(self, slot: int, num_tokens: int) -> bool:
        while len(self._tables[slot]) * BLOCK < num_tokens:
            if self._free:
                block = self._free.pop()
            elif self._idle:
                block, _ = self._idle.popitem(last=False)
                self._contents.forget(block)
            else:
                return False
            self._use(slot, block)
        return True

    def write(self, slot: int, start: int, end: int, keys: Items[Key]) -> None:
        if self._finds:
            for index in range(start // BLOCK, min(end // BLOCK, len(keys))):
                self._contents.learn(self._tables[slot][index], keys[index])

    def release(self, slot: int, *, keeps: bool) -> None:
        # The last block first, so that it is the first to be given away: what follows a block
        # that is gone cannot be found.
        for block in reversed(self._tables[slot]):
            if not keeps:
                self._contents.forget(block)
            self._num_users[block] -= 1
            if self._num_users[block]:
                continue
            if block in self._contents:
                self._idle[block] = None
            else:
                self._free.append(block)
        self._tables[slot].clear()

    def flush(self) -> Changes:
        tables = tuple((slot, index, block) for (slot, index), block in self._changes.items())
        self._changes.clear()
        return Changes(tables=tables)

    def reset(self) -> None:
        for table in self._tables:
            table.clear()
        self._contents = Contents()
        self._free = list(reversed(range(self._num_blocks)))
        self._num_users = [0] * self._num_blocks
        #: Blocks without users that may be found again, the longest unused first.
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._changes: dict[tuple[int, int], int] = {}

    @property
    def num_used(self) -> int:
        return self._num_blocks - len(self._free) - len(self._idle)

    @property
    def num_cached(self) -> int:
        return len(self._idle)

    def _use(self, slot: int, block: int) -> None:
        self._idle.pop(block, None)
        self._num_users[block] += 1
        self._changes[slot, len(self._tables[slot])] = block
        self._tables[slot].append(block)
