"""Removes what ended long ago, so that the store does not grow for ever.

In small batches with pauses between them, each a transaction of its own: whoever wants to write
meanwhile is hardly held up, and a purge that is cut off has removed what it said it had.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from scheduler.clock import Clock
from scheduler.errors import StoreUnavailable
from scheduler.task_book import TaskBook

log = structlog.get_logger(__name__)

#: Seconds between two looks for what may go.
LOOK_S: Final = 60.0


class Upkeep:
    """The periodic purge of one control plane."""

    def __init__(
        self, book: TaskBook, clock: Clock, *, retention_s: float, look_s: float = LOOK_S
    ) -> None:
        """``retention_s``: seconds for which a task is kept after its end; 0: for ever."""
        self._book = book
        self._clock = clock
        self._retention_s = retention_s
        self._look_s = look_s

    def __repr__(self) -> str:
        return f"<Upkeep retention_s={self._retention_s:g}>"

    async def run(self) -> None:
        """Purge until cancelled."""
        while True:
            await self.purge()
            await asyncio.sleep(self._look_s)

    async def purge(self) -> int:
        """Remove every task that ended before the retention; how many."""
        if not self._retention_s:
            return 0
        try:
            num_removed = await self._book.purge(self._clock.now() - self._retention_s)
        except StoreUnavailable as error:
            # It is full or away; what was removed stays removed, the rest is tried again.
            log.warning("store_refused", error=str(error))
            return 0
        if num_removed:
            log.info("tasks_purged", num_tasks=num_removed)
        return num_removed
