"""Clocks: that of the store, which counts; this control plane's; and the runners'.

Leases, pauses and deadlines are judged by the store's clock: of SQLite that is this machine's, of
PostgreSQL the server's. Between two looks it is carried on by the monotonic clock, so a clock that
is set shows here first, and nothing has been judged by it yet. Runners need no right clock, since
they are told durations; theirs are compared for the sake of whoever reads their logs.
"""

from __future__ import annotations

from typing import Final

from scheduler.drift import Finding
from scheduler.reconciliation.base import ITSELF, Check, Parts

#: Seconds from which on a difference is a clock that was set, and not one that drifts.
JUMP_S: Final = 1.0
#: Seconds that a runner's clock may be off, or this machine's, before it is told.
MOST_SKEW_S: Final = 2.0


class ClockSkew(Check):
    """Clocks that were set, or do not agree."""

    name = "clock_skew"
    looks_at = "the store's clock against the monotonic one, machines' clocks against the store's"
    repair = "leases get a full term and allowances fill up from now; machines' clocks are reported"
    every_s = 1.0

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self._has_looked = False
        #: Seconds that the clock has jumped by and leases do not know of yet; None: nothing.
        self._owed_s: float | None = None

    async def look(self) -> list[Finding]:
        return [*await self._follow_store(), *self._compare()]

    async def _follow_store(self) -> list[Finding]:
        clock = self._parts.clock
        begun_at = clock.monotonic()
        told = await self._parts.book.ledger.store.now()
        round_trip_s = clock.monotonic() - begun_at
        now = clock.machine_now() if told is None else told + round_trip_s / 2
        ahead_s = now - clock.now()
        if not self._has_looked:
            # What it was before is not known; leases get a full term at the start anyway.
            clock.set(now)
            self._has_looked = True
        elif abs(ahead_s) > JUMP_S + round_trip_s / 2:
            clock.set(now)
            self._owed_s = (self._owed_s or 0.0) + ahead_s
        elif round_trip_s < JUMP_S / 2:
            clock.set(now)
        if self._owed_s is None:
            return []
        # If the store refuses, this is owed until the next look, and nobody looks for expired
        # leases before.
        num_leases = await self._parts.book.renew_all()
        jumped_s, self._owed_s = self._owed_s, None
        problem = f"the clock jumped by {jumped_s:+.1f} s; {num_leases} leases got a full term"
        return [Finding(ITSELF, problem)]

    def _compare(self) -> list[Finding]:
        off = {
            f"runner {node.runner_id}": node.clock_skew_s
            for node in self._parts.cluster.nodes()
            if node.connected and node.clock_skew_s is not None
        }
        clock = self._parts.clock
        off[ITSELF] = clock.machine_now() - clock.now()
        return [
            Finding(subject, f"its machine's clock is {skew_s:+.1f} s off the store's", False)
            for subject, skew_s in off.items()
            if abs(skew_s) > MOST_SKEW_S
        ]
