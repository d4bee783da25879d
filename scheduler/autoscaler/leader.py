"""Which of several control planes on one store decides what should run.

The one that does shows at every look that it lives; the others watch. When nothing has moved for a
while, one of them takes over, under a greater epoch. How long that is each measures by its own
monotonic clock from what it saw, so clocks need not agree; and what an earlier leader decides, that
only stood still, is refused because of its epoch. A control plane that ends resigns, and another
takes over at once.
"""

from __future__ import annotations

from scheduler.clock import Clock
from scheduler.node_book import NodeBook
from scheduler.registration import Leadership


class Leader:
    """One control plane's part in it."""

    def __init__(self, book: NodeBook, clock: Clock, *, term_s: float) -> None:
        """``term_s``: seconds without a sign of life after which another takes over."""
        self._book = book
        self._clock = clock
        self._term_s = term_s
        self._seen: Leadership | None = None
        self._seen_at = 0.0

    def __repr__(self) -> str:
        return f"<Leader {self._seen}>"

    async def lead(self) -> int | None:
        """The epoch in which this control plane decides; None: another does.

        Raises:
            StoreUnavailable: nobody knows.
        """
        current, now = await self._book.leadership(), self._clock.monotonic()
        is_ours = current.holder == self._book.control_plane
        if current != self._seen:
            self._seen, self._seen_at = current, now
        is_over = not current.holder or now - self._seen_at >= self._term_s
        # Where there can be no other, whoever else holds it is gone, and nobody has to be shown.
        if (not is_ours and (is_over or not self._book.is_shared)) or (
            is_ours and self._book.is_shared
        ):
            current = await self._book.lead(current)
            is_ours = current.holder == self._book.control_plane
        return current.epoch if is_ours else None
