"""What is not wrong but over: bulks that were left open, and tasks that ended long ago."""

from __future__ import annotations

import structlog

from scheduler.drift import Finding
from scheduler.reconciliation.base import Check

log = structlog.get_logger(__name__)


class BulksLeftOpen(Check):
    """Bulks that were begun and forgotten."""

    name = "bulks_left_open"
    looks_at = "bulks that nobody closed in time, and cancellations that were broken off"
    repair = "they are cancelled, input by input"
    every_s = 60.0

    async def look(self) -> list[Finding]:
        left = await self._parts.bulks.sweep()
        return [
            Finding(f"bulk {bulk.id}", f"was left open with {bulk.num_inputs} inputs")
            for bulk in left
        ]


class EndedLongAgo(Check):
    """Tasks and bulks whose retention is over; an empty answer, since nothing was wrong."""

    name = "ended_long_ago"
    looks_at = "tasks and bulks that ended longer ago than they are kept"
    repair = "they are removed with all that belongs to them, in small batches with pauses between"
    every_s = 60.0

    async def look(self) -> list[Finding]:
        if not self._parts.retention_s:
            return []
        before = self._parts.clock.now() - self._parts.retention_s
        num_tasks = await self._parts.book.purge(before)
        num_bulks = await self._parts.bulks.purge(before)
        if num_tasks or num_bulks:
            log.info("tasks_purged", num_tasks=num_tasks, num_bulks=num_bulks)
        return []
