"""Decides which running tasks are about to end.

A task may produce so many tokens more at most, and takes for each what it has taken on average for
those since its first under this lease: so it ends by then, or sooner if it stops by itself. One
that is late, or has produced more than it may, is not understood, and not counted on. Nothing is
said of work that produces no tokens. Moments are handed in; this reads no clock.
"""

from __future__ import annotations

from typing import Final

#: Seconds before its expected end from which on a task is about to end, and after it until which
#: it still is. Who waits for that and for the slot to be handed over does not notice: it takes
#: less than a tenth of a second.
SOON_S: Final = 0.05


class Course:
    """One lease's way to its end."""

    __slots__ = ("_began", "_ends_at", "_was_ending")

    def __init__(self) -> None:
        #: When its first tokens came, and how many were to come after them.
        self._began: tuple[float, int] | None = None
        self._ends_at: float | None = None
        #: When it last produced something.
        self._was_ending = False

    def __repr__(self) -> str:
        return f"<Course ends_at={self._ends_at}>"

    def progressed(self, num_left: int, now: float) -> bool:
        """It has produced something, and may produce ``num_left`` tokens more; whether it is about
        to end and was not when it last did."""
        began_at, left_then = self._began = self._began or (now, num_left)
        if num_left <= 0:
            self._ends_at = now if num_left == 0 else None
        elif num_left < left_then:
            self._ends_at = now + num_left * (now - began_at) / (left_then - num_left)
        was_ending, self._was_ending = self._was_ending, self.is_ending(now)
        return self._was_ending and not was_ending

    def is_ending(self, now: float) -> bool:
        """Whether its slot is free again in a moment."""
        return self._ends_at is not None and abs(self._ends_at - now) <= SOON_S
