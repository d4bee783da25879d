"""What goes wrong, and how often it did."""

from __future__ import annotations

import random
from collections import Counter

from scheduler.testing.simulation.scenario import CHANCES


class Faults:
    """The faults of one run: those it has, until they are switched off."""

    def __init__(self, kinds: frozenset[str], rng: random.Random) -> None:
        self._kinds, self._rng = kinds, rng
        self.are_on = True
        self.injected: Counter[str] = Counter()

    def has(self, kind: str) -> bool:
        return self.are_on and kind in self._kinds

    def strike(self, kind: str) -> bool:
        """Whether a fault of ``CHANCES`` happens now; counted if it does."""
        if not self.has(kind) or self._rng.random() >= CHANCES[kind]:
            return False
        self.injected[kind] += 1
        return True
