"""Removes what ended long ago, so that the store does not grow for ever, and ends bulks that were
left.

In small batches with pauses between them, each a transaction of its own: whoever wants to write
meanwhile is hardly held up, and a purge that is cut off has removed what it said it had.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from scheduler.bulk_book import BulkBook
from scheduler.clock import Clock
from scheduler.errors import StoreUnavailable
from scheduler.task_book import TaskBook

log = structlog.get_logger(__name__)

#: Seconds between two looks for what may go.
LOOK_S: Final = 60.0


class Upkeep:
    """The periodic purge of one control plane."""

    def __init__(
        self,
        book: TaskBook,
        bulks: BulkBook,
        clock: Clock,
        *,
        retention_s: float,
        look_s: float = LOOK_S,
    ) -> None:
        """``retention_s``: seconds for which a task is kept after its end; 0: for ever."""
        self._book, self._bulks = book, bulks
        self._clock = clock
        self._retention_s = retention_s
        self._look_s = look_s

    def __repr__(self) -> str:
        return f"<Upkeep retention_s={self._retention_s:g}>"

    async def run(self) -> None:
        """Purge, and end bulks that were left, until cancelled."""
        while True:
            await self.purge()
            await self.end_bulks()
            await asyncio.sleep(self._look_s)

    async def purge(self) -> int:
        """Remove every task that ended before the retention; how many."""
        if not self._retention_s:
            return 0
        try:
            before = self._clock.now() - self._retention_s
            num_removed = await self._book.purge(before)
            await self._bulks.purge(before)
        except StoreUnavailable as error:
            # It is full or away; what was removed stays removed, the rest is tried again.
            log.warning("store_refused", error=str(error))
            return 0
        if num_removed:
            log.info("tasks_purged", num_tasks=num_removed)
        return num_removed

    async def end_bulks(self) -> None:
        """Cancel bulks that nobody has closed in time, and go on with cancellations that were
        broken off."""
        try:
            ended = await self._bulks.sweep()
        except StoreUnavailable as error:
            log.warning("store_refused", error=str(error))
            return
        for bulk in ended:
            log.warning("bulk_abandoned", bulk_id=bulk.id, num_inputs=bulk.num_inputs)
