"""Tasks whose time is over: deadlines, leases, pauses; and tasks that nobody works on."""

from __future__ import annotations

from typing import Final

import structlog

from scheduler import moves
from scheduler.drift import Finding
from scheduler.reconciliation.base import ITSELF, Check, Parts

log = structlog.get_logger(__name__)

#: Part of a lease's term without a look after which leases may have run out through our fault.
_AWAY_TERMS: Final = 0.5
#: Heartbeats without which a lease is not being renewed.
_UNRENEWED_BEATS: Final = 3
#: Rows that are looked at in one command.
_BATCH: Final = 500


class DeadlinesPassed(Check):
    """Tasks that nobody wants any more."""

    name = "deadlines_passed"
    looks_at = "tasks that have not ended and whose deadline has passed"
    repair = "they expire; whoever works on one is told to stop"
    every_s = 1.0

    async def look(self) -> list[Finding]:
        ended = await self._parts.book.expire_overdue()
        return [Finding(f"task {task.id}", "its deadline passed") for task in ended]


class ExpiredLeases(Check):
    """Leases that nobody has renewed, unless nobody could."""

    name = "expired_leases"
    looks_at = "leased tasks whose lease ran out"
    repair = "they are queued again, journal kept; if nobody could renew, all get a full term"
    every_s = 1.0

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self._looked_at: float | None = None

    async def look(self) -> list[Finding]:
        book, clock = self._parts.book, self._parts.clock
        away_s = None if self._looked_at is None else clock.monotonic() - self._looked_at
        if away_s is None or away_s > self.every_s + book.rules.lease_ttl_s * _AWAY_TERMS:
            # The store refused, or this process stood still or was not there: the runners could
            # not renew their leases, and have gone on working.
            num_leases = await book.renew_all()
            self._looked_at = clock.monotonic()
            if away_s is None:
                log.info("leases_renewed", num_leases=num_leases)
                return []
            problem = f"stood still for {away_s:.1f} s; {num_leases} leases got a full term"
            return [Finding(ITSELF, problem)]
        lost = await book.lose_expired()
        self._looked_at = clock.monotonic()
        return [Finding(f"task {task.id}", "its lease ran out") for task in lost]


class PausesOver(Check):
    """Tasks that wait no longer after a lost attempt."""

    name = "pauses_over"
    looks_at = "delayed tasks whose pause is over, or longer than any may be"
    repair = "they are queued"
    every_s = 1.0

    async def look(self) -> list[Finding]:
        queued = await self._parts.book.end_pauses()
        return [Finding(f"task {task.id}", "its pause is over") for task in queued]


class TasksHeldByNobody(Check):
    """Tasks that count as worked on, and are not."""

    name = "tasks_held_by_nobody"
    looks_at = "leased tasks without a whole lease, or whose runner is here and does not have them"
    repair = "they are queued again, journal kept, before their lease runs out"
    every_s = 2.0

    async def look(self) -> list[Finding]:
        return [*await self._without_lease(), *await self._forgotten()]

    async def _without_lease(self) -> list[Finding]:
        """No index of lease terms finds them, so they would be leased for ever."""
        ledger, rules = self._parts.book.ledger, self._parts.book.rules
        ids = await ledger.store.read(lambda tx: tx.leased_to_nobody(_BATCH))
        if not ids:
            return []
        now = ledger.clock.now()
        freed = await ledger.run(lambda tx: moves.free_unheld(tx, rules, ids, now))
        return [Finding(f"task {task.id}", "was leased to nobody") for task in freed]

    async def _forgotten(self) -> list[Finding]:
        """The claim was written and its answer was lost, so the runner never heard of it."""
        book, cluster = self._parts.book, self._parts.cluster
        now = book.ledger.clock.now()
        # A lease that was renewed lately is held, if not by way of this control plane.
        unrenewed = now + book.rules.lease_ttl_s - _UNRENEWED_BEATS * self._parts.heartbeat_s
        found: list[Finding] = []
        for runner in [node.runner_id for node in cluster.nodes() if node.connected]:
            leased = await book.ledger.store.read(lambda tx: tx.leases(runner))  # noqa: B023  # awaited here
            held = cluster.leases(runner)
            for task in leased:
                expires_at = task.lease_expires_at
                if (task.id, task.fence) in held or expires_at is None or expires_at > unrenewed:
                    continue
                reason = f"runner {runner} is there and does not have it"
                freed = await book.ledger.run(
                    lambda tx: moves.free_unrenewed(tx, book.rules, task, reason, now)  # noqa: B023  # awaited here
                )
                if freed is not None:
                    found.append(Finding(f"task {task.id}", reason))
        return found
