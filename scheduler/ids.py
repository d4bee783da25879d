"""Task ids: ULIDs, 26 characters that sort by the moment they were drawn.

Within a process each id is greater than the one before, also within a millisecond and when the
wall clock runs back, so that arrival order is the order of ids.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

from scheduler.clock import Clock

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_RANDOM_BITS = 80


class IdSource:
    """Draws ids; call it."""

    def __init__(self, clock: Clock, random_bits: Callable[[int], int] = secrets.randbits) -> None:
        self._clock = clock
        self._random_bits = random_bits
        self._last = 0

    def follow(self, newest: str | None) -> None:
        """Draw only ids greater than this one, which a process before has drawn: its clock may
        have been ahead. From a place of its own, since others may follow the same id. None: there
        was none."""
        if newest is None:
            return
        self._last = max(self._last, decode(newest) + self._random_bits(_RANDOM_BITS - 8))

    def __call__(self) -> str:
        milliseconds = int(self._clock.now() * 1000)
        drawn = (milliseconds << _RANDOM_BITS) | self._random_bits(_RANDOM_BITS)
        self._last = max(drawn, self._last + 1)
        return encode(self._last)


def decode(text: str) -> int:
    """The number that :func:`encode` has written so."""
    number = 0
    for letter in text:
        number = number << 5 | _ALPHABET.index(letter)
    return number


def encode(number: int) -> str:
    """26 characters of Crockford base 32 for a number of up to 130 bits."""
    return "".join(_ALPHABET[(number >> shift) & 31] for shift in range(125, -1, -5))
