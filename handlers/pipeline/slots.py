"""Decides who has a slot: admission, in order of arrival, and preemption.

A sequence is admitted when there is a slot and blocks for its known tokens. When a running one
needs a block and none is left, the youngest is *preempted*: it waits again, before all younger
ones, and is computed again later from its tokens. The oldest is never preempted and a sequence
alone always fits, so somebody always gets on.

With a prefix cache, a sequence whose prefix another is about to fill waits until it has: of
several answers to one prompt the first computes the prompt and the others find it.

It knows nothing of steps.
"""

from __future__ import annotations

from bisect import insort

from handlers.pipeline import prefix_cache
from handlers.pipeline.blocks import Blocks, Changes, Home, Paged
from handlers.pipeline.sequence import Sequence
from handlers.pipeline.shape import Shape
from handlers.pipeline.step import BLOCK


class Slots:
    """The sequences, those that wait and those that have a slot."""

    def __init__(self, shape: Shape, group_size: int) -> None:
        """``group_size``: neighbouring slots that share steps, in exact mode."""
        self._shape, self._group_size = shape, group_size
        self.blocks = _blocks(shape)
        self.waiting: list[Sequence] = []
        self._taken: dict[int, Sequence] = {}
        #: Longest free first.
        self._free = list(range(shape.max_rows))
        self._num_arrived = 0
        self.num_admitted = self.num_preempted = self.num_tokens_saved = 0

    def __repr__(self) -> str:
        return f"<Slots waiting={len(self.waiting)} running={len(self._taken)} {self.blocks!r}>"

    @property
    def running(self) -> list[Sequence]:
        """Those that have a slot."""
        return list(self._taken.values())

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait.

        Raises:
            ValueError: it has no token, or more than a context holds.
        """
        if not 1 <= len(sequence.token_ids) <= self._shape.max_context:
            raise ValueError(
                f"sequence {sequence.request_id} has {len(sequence.token_ids)} tokens; "
                f"allowed are 1 to {self._shape.max_context}"
            )
        self._num_arrived += 1
        sequence.arrival = self._num_arrived
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence. What it computed may be found, unless its draw had a fault."""
        if sequence.slot is not None:
            self._release(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def admit(self) -> list[Sequence]:
        """Give slots to those that wait, as far as there are slots and blocks.

        Returns:
            Those that got one.
        """
        admitted: list[Sequence] = []
        promised: set[bytes] | None = None
        num_held = 0
        for sequence in list(self.waiting) if self._free else ():
            if len(self._free) <= num_held:
                break
            promised = self._promised() if promised is None else promised
            keys = self._findable(sequence)
            if self._is_worth_waiting(keys, promised):
                # A slot is kept for it, so that who came later does not overtake it for long.
                num_held += 1
            elif not self._admit(sequence, keys, reserve=len(self._taken)):
                break
            else:
                promised.update(self._unwritten(sequence))
                admitted.append(sequence)
        return admitted

    def admit_alone(self, sequence: Sequence) -> None:
        """Give a slot to this one whoever else has to make room."""
        while sequence.slot is None:
            keys = self._findable(sequence)
            if not self._free or not self._admit(sequence, keys, reserve=0):
                self.preempt(max(self._taken.values(), key=_arrival))

    def grow(self, sequences: list[Sequence]) -> list[Sequence]:
        """Make sure of a block for the next token of each, the oldest first.

        Returns:
            Those that still have their slots.
        """
        for sequence in sorted(sequences, key=_arrival):
            while sequence.slot is not None:
                if self.blocks.grow(sequence.slot, sequence.num_cached + 1):
                    break
                self.preempt(max(self._taken.values(), key=_arrival))
        return [sequence for sequence in sequences if sequence.slot is not None]

    def write(self, sequence: Sequence, num_tokens: int) -> None:
        """So many more of the tokens are about to be issued."""
        assert sequence.slot is not None
        start, end = sequence.num_cached, sequence.num_cached + num_tokens
        keys = self._keys(sequence, end)
        self.blocks.write(sequence.slot, start, end, keys)
        sequence.num_cached = end

    def flush(self) -> Changes:
        """What the step to be issued has to tell of tables and copies."""
        return self.blocks.flush()

    def preempt(self, sequence: Sequence) -> None:
        """Take the slot away; the sequence waits again."""
        self.num_preempted += 1
        self._release(sequence)
        insort(self.waiting, sequence, key=_arrival)

    def reset(self) -> None:
        """No cache holds anything; all sequences wait."""
        for sequence in self.running:
            self._release(sequence)
            insort(self.waiting, sequence, key=_arrival)
        self._free.sort()
        self.blocks.reset()

    def _admit(self, sequence: Sequence, keys: list[bytes], reserve: int) -> bool:
        num_tokens = len(sequence.token_ids)
        place = self.blocks.admit(keys, num_tokens, self._preferred(), reserve)
        if place is None:
            return False
        self.waiting.remove(sequence)
        self._free.remove(place.slot)
        self._taken[place.slot] = sequence
        sequence.slot, sequence.num_cached = place.slot, place.num_found * BLOCK
        self.num_admitted += 1
        self.num_tokens_saved += sequence.num_cached
        return True

    def _release(self, sequence: Sequence) -> None:
        assert sequence.slot is not None
        self.blocks.release(sequence.slot, keeps=not sequence.is_faulty)
        del self._taken[sequence.slot]
        self._free.append(sequence.slot)
        sequence.slot, sequence.num_cached = None, 0
        sequence.is_open = sequence.is_faulty = sequence.is_replaying = False
        sequence.num_prefills_passed = 0
        sequence.life += 1

    def _preferred(self) -> list[int]:
        """The free slots, the one to take first when nothing is found in any first."""
        if self._shape.is_exact:
            taken = [slot // self._group_size for slot in self._taken]
            return sorted(
                self._free, key=lambda slot: (taken.count(slot // self._group_size), slot)
            )
        if not (self._shape.is_home and self._shape.has_prefix_cache):
            return sorted(self._free)
        # Beside those that run, to be read in place with them; else what lay longest, because it
        # is the least likely to be asked for.
        return sorted(self._free, key=self._distance)

    def _distance(self, slot: int) -> int:
        return min((abs(slot - taken) for taken in self._taken), default=0)

    def _keys(self, sequence: Sequence, num_tokens: int) -> list[bytes]:
        if not self._shape.has_prefix_cache:
            return []
        if self._shape.is_exact:
            # The answer's tokens went through decode steps: other shapes, other bits.
            num_tokens = min(num_tokens, sequence.num_prompt)
        prefix_cache.extend(sequence.keys, sequence.token_ids, num_tokens)
        return sequence.keys[: num_tokens // BLOCK]

    def _findable(self, sequence: Sequence) -> list[bytes]:
        """Keys of the blocks that need not be computed; one token always is, to draw after it."""
        last = sequence.num_prompt if self._shape.is_exact else len(sequence.token_ids)
        return self._keys(sequence, last - 1)

    def _promised(self) -> set[bytes]:
        """Keys of the blocks that running sequences are about to fill."""
        return {key for sequence in self._taken.values() for key in self._unwritten(sequence)}

    def _unwritten(self, sequence: Sequence) -> list[bytes]:
        if sequence.is_faulty or sequence.num_missing <= 1:
            return []
        return self._keys(sequence, len(sequence.token_ids))[sequence.num_cached // BLOCK :]

    def _is_worth_waiting(self, keys: list[bytes], promised: set[bytes]) -> bool:
        unit = self._shape.blocks_per_find
        num_found = self.blocks.num_found(keys)
        following = keys[num_found : num_found + unit]
        return len(following) == unit and not promised.isdisjoint(following)


def _blocks(shape: Shape) -> Blocks:
    unit, finds = shape.blocks_per_find, shape.has_prefix_cache
    if shape.is_home:
        return Home(shape.blocks_per_slot, unit, finds=finds)
    return Paged(shape.max_rows, shape.num_blocks, unit, finds=finds)


def _arrival(sequence: Sequence) -> int:
    return sequence.arrival
