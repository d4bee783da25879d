"""Decides which sequences share a step, and writes the step down.

Rows are read from the cache in place when their slots lie at equal distances; others are copied
for every layer. So a decode step takes a run of neighbouring slots where it can, and computes a
few slots in gaps for nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import pairwise

from handlers.pipeline.sequence import Sequence
from handlers.pipeline.step import BLOCK, Row, Step


@dataclass(frozen=True, slots=True)
class Share:
    """A row to be: a slot, and how many tokens of whom; None: computed for nothing."""

    slot: int
    sequence: Sequence | None = None
    num_tokens: int = 0
    is_drawn: bool = False

    @property
    def end(self) -> int:
        """Position behind the row's last token."""
        return 0 if self.sequence is None else self.sequence.num_cached + self.num_tokens


def share(sequence: Sequence, num_tokens: int) -> Share:
    """So many of the sequence's missing tokens; it is drawn after the last known one."""
    assert sequence.slot is not None
    return Share(sequence.slot, sequence, num_tokens, num_tokens == sequence.num_missing)


def lane_of(decoding: Iterable[Sequence], lanes: int, oldest_issue: int) -> list[Sequence]:
    """Those of one lane that are ready: of the fullest, or of the one that has waited too long.

    The lanes are the slots in their order, cut into equal parts: so rows lie together, and after
    a change of who decodes they do so again within a cycle. ``oldest_issue``: who was last in a
    step before that goes first, and of several the one that waited longest. So every step takes
    one away from those before it and nobody is added to them, whoever comes and goes.
    """
    by_slot = sorted(decoding, key=slot_of)
    cuts = [len(by_slot) * lane // lanes for lane in range(lanes + 1)]
    parts = [by_slot[start:end] for start, end in pairwise(cuts)]
    ready = [[each for each in part if each.num_missing] for part in parts]

    def urgency(part: list[Sequence]) -> tuple[int, int]:
        longest = max((oldest_issue - each.last_issue for each in part), default=0)
        return max(0, longest), len(part)

    return max(ready, key=urgency)


def decode(chosen: list[Sequence], *, is_in_place: bool) -> list[Share]:
    """One token for each; ``is_in_place``: with the gaps filled when they are few."""
    shares = {slot_of(sequence): share(sequence, 1) for sequence in chosen}
    slots = sorted(shares)
    span = range(slots[0], slots[-1] + 1)
    is_even = len({b - a for a, b in pairwise(slots)}) <= 1
    if not is_in_place or is_even or len(span) - len(slots) > 1 + len(slots) // 8:
        return [shares[slot] for slot in slots]
    return [shares.get(slot, Share(slot)) for slot in span]


def prefill(behind: Iterable[Sequence], budget: int) -> list[Share]:
    """Rows in order of arrival, the step within ``budget`` tokens, padding included.

    Were the shortest first, a long prompt could wait for ever.
    """
    chosen: list[Share] = []
    width = 0
    for sequence in sorted(behind, key=lambda sequence: sequence.arrival):
        count = min(sequence.num_missing, budget)
        width = max(width, count)
        if chosen and (len(chosen) + 1) * width > budget:
            break
        chosen.append(share(sequence, count))
    return chosen


def group_of(ready: Iterable[Sequence], size: int, busy: Collection[int]) -> list[Sequence]:
    """Those of a group of neighbouring slots that is not busy, the one that waited longest."""
    idle = [each for each in ready if slot_of(each) // size not in busy]
    if not idle:
        return []
    group = slot_of(min(idle, key=lambda sequence: sequence.last_issue)) // size
    return [each for each in idle if slot_of(each) // size == group]


def decode_group(chosen: list[Sequence], size: int, num_slots: int) -> list[Share]:
    """One token for each of a group, and a row for every other slot of it."""
    first = min(slot_of(chosen[0]) // size * size, num_slots - size)
    shares = {slot_of(each): Share(slot_of(each), each, 1, is_drawn=True) for each in chosen}
    return [shares.get(slot, Share(slot)) for slot in range(first, first + size)]


def prefill_exact(behind: Iterable[Sequence], chunk: int) -> list[Share]:
    """The next chunk of the prompt that came first, with all chunks at multiples of their size."""
    sequence = min(behind, key=lambda sequence: sequence.arrival)
    count = min(chunk, sequence.num_prompt - sequence.num_cached)
    is_last = sequence.num_cached + count == sequence.num_prompt
    return [Share(slot_of(sequence), sequence, count, is_last)]


def write(number: int, shares: list[Share], width: int = 0) -> Step:
    """The step of the shares; ``width``: more than the longest row's tokens, to keep a shape."""
    width = max(width, *(each.num_tokens for each in shares))
    rows, tokens = [], []
    for each in shares:
        start = 0 if each.sequence is None else each.sequence.num_cached
        rows.append(Row(each.slot, start, each.num_tokens, each.is_drawn))
        ids = [] if each.sequence is None else each.sequence.token_ids[start : each.end]
        tokens.append(tuple(ids) + (0,) * (width - len(ids)))
    window = -(-max(each.end for each in shares) // BLOCK) * BLOCK
    return Step(number, width, window, tuple(rows), tuple(tokens))


def slot_of(sequence: Sequence) -> int:
    """The slot of one that has one."""
    assert sequence.slot is not None
    return sequence.slot
