"""Decides which request is to blame when the engine dies under several.

Whoever was in flight may be. They all go on from their tokens, and who gets a further token is
cleared: a request that kills does so again at the same place. One that is in flight at a second
death without having moved on is guilty if it is the only one, else a *suspect*: suspects run
alone, one after the other, so that the next death names the one. Logits that are no numbers count
as a death of their own sequence only.

It knows neither processes nor caches; the caller fails the guilty, and the schedule runs suspects
alone.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from handlers.pipeline.sequence import Sequence

#: Deaths without progress in between after which a sequence is isolated, or guilty.
MAX_FAULTS: Final = 2

_Key = tuple[str, int]


class Docket:
    """The sequences that met a fault and have not moved on since."""

    def __init__(self) -> None:
        #: How many faults, and how many tokens it had at the last one.
        self._met: dict[_Key, tuple[int, int]] = {}

    def __repr__(self) -> str:
        return f"<Docket open={len(self._met)}>"

    def blame(self, in_flight: Collection[Sequence]) -> list[Sequence]:
        """Note a death of the engine; returns the sequences that are guilty of it."""
        repeated = [each for each in in_flight if self.blame_one(each)]
        if len(repeated) == 1:
            return repeated
        for sequence in repeated:
            sequence.suspect_until = len(sequence.token_ids)
        return []

    def blame_one(self, sequence: Sequence) -> bool:
        """Note a fault; returns whether it is one too many."""
        count = self._met.get(_key(sequence), (0, 0))[0] + 1
        self._met[_key(sequence)] = (count, len(sequence.token_ids))
        return count >= MAX_FAULTS

    def grew(self, sequence: Sequence) -> None:
        """Note that a sequence got a token: it is cleared."""
        if self._met and self._met.pop(_key(sequence), None) is not None:
            sequence.suspect_until = None

    def forget(self, sequence: Sequence) -> None:
        """The sequence is no more."""
        self._met.pop(_key(sequence), None)


def _key(sequence: Sequence) -> _Key:
    return sequence.request_id, sequence.index
