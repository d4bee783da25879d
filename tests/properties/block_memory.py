"""A model that remembers in blocks, as stages do, and whose answers betray any wrong block.

What it keeps of a token depends on all it reads before it, through the slot's table, and on the
position it was put at. So a wrong table, a stale block, an overwritten prefix or a wrong copy
changes every draw that follows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from handlers.pipeline.sequence import Sequence
from handlers.pipeline.shape import Shape
from handlers.pipeline.step import BLOCK, Draw, Row, Step

VOCABULARY = 5


@dataclass(slots=True)
class Memory:
    """All stages at once: they do the same to their blocks, in the same order."""

    shape: Shape
    tables: dict[tuple[int, int], int] = field(default_factory=dict)
    #: By block and offset: position and digest.
    kept: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    #: What the last stage takes each slot's tokens to be, the drawn ones included.
    told: dict[int, list[int]] = field(default_factory=dict)

    def lose(self) -> None:
        """Forget everything, as stages that were started again do."""
        self.tables.clear()
        self.kept.clear()
        self.told.clear()

    def run(self, step: Step) -> list[Draw | None]:
        self._change(step)
        assert step.width >= max(row.num_tokens for row in step.rows)
        assert step.window % BLOCK == 0
        assert step.window <= self.shape.blocks_per_slot * BLOCK
        slots = [row.slot for row in step.rows]
        assert len(set(slots)) == len(slots)
        assert all(0 <= slot < self.shape.max_rows for slot in slots)
        rows = zip(step.rows, step.token_ids, strict=True)
        return [self._row(step, row, list(ids)) for row, ids in rows]

    def _change(self, step: Step) -> None:
        for slot, index, block in step.tables:
            assert not self.shape.is_home
            assert 0 <= block < self.shape.num_blocks
            self.tables[slot, index] = block
        sources = {source for source, _ in step.copies}
        targets = [target for _, target in step.copies]
        # So that stages may copy all at once or one after the other.
        assert sources.isdisjoint(targets[: len(targets)]) or self._is_ordered(step.copies)
        assert len(set(targets)) == len(targets)
        for source, target in step.copies:
            for offset in range(BLOCK):
                self.kept[target, offset] = self.kept[source, offset]
        for opened in step.opens:
            self.told[opened.slot] = [*opened.prompt_token_ids, *opened.generated]

    @staticmethod
    def _is_ordered(copies: tuple[tuple[int, int], ...]) -> bool:
        """Whether no block is read after it was written."""
        written: set[int] = set()
        for source, target in copies:
            if source in written:
                return False
            written.add(target)
        return True

    def _at(self, slot: int, position: int) -> tuple[int, int]:
        home = slot * self.shape.blocks_per_slot + position // BLOCK
        block = home if self.shape.is_home else self.tables[slot, position // BLOCK]
        return block, position % BLOCK

    def _row(self, step: Step, row: Row, token_ids: list[int]) -> Draw | None:
        if row.num_tokens == 0:
            assert not row.is_drawn
            return None
        end = row.start + row.num_tokens
        assert end <= min(self.shape.max_context, step.window)
        digest = 0
        for position in range(row.start):
            where, kept = self.kept[self._at(row.slot, position)]
            assert where == position
            digest = hash((digest, kept))
        # In floating point, bits depend on the shape; nobody promises any but in exact mode.
        first = row.start - row.start % step.width
        how = (step.width, len(step.rows), first) if self.shape.is_exact else 0
        for position, token_id in enumerate(token_ids[: row.num_tokens], row.start):
            kept = hash((digest, token_id, how))
            self.kept[self._at(row.slot, position)] = position, kept
            digest = hash((digest, kept))
        if not row.is_drawn:
            return None
        told = self.told[row.slot]
        assert len(told) == end
        assert told[row.start :] == token_ids[: row.num_tokens]
        told.append(digest % VOCABULARY)
        return Draw(told[-1])


def alone(prompt: list[int], count: int) -> list[int]:
    """What the model answers when there is nobody else, without any schedule."""
    token_ids = list(prompt)
    for _ in range(count):
        digest = 0
        for token_id in token_ids:
            digest = hash((digest, hash((digest, token_id, 0))))
        token_ids.append(digest % VOCABULARY)
    return token_ids[len(prompt) :]


def answer_of(sequence: Sequence) -> list[int]:
    return sequence.token_ids[sequence.num_prompt :]
