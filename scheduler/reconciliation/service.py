"""Has every check look in its turn, and counts what they find.

What was found and could not be put right is counted and logged once, when it is first seen, and
shown as open until a look finds it no more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import structlog

from scheduler.clock import Clock
from scheduler.drift import Finding, Tally
from scheduler.errors import StoreUnavailable
from scheduler.reconciliation.base import Check

log = structlog.get_logger(__name__)

#: Seconds between two looks at whose turn it is.
TICK_S: Final = 1.0
#: Findings of one look that are logged each.
MOST_LOGGED: Final = 20


@dataclass(slots=True)
class _Kept:
    check: Check
    tally: Tally
    due_at: float = 0.0


class Reconciliation:
    """The checks of one control plane."""

    def __init__(self, checks: Sequence[Check], clock: Clock, *, tick_s: float = TICK_S) -> None:
        self._kept = [_Kept(check, _blank(check)) for check in checks]
        self._clock = clock
        self._tick_s = tick_s
        self._turn = asyncio.Lock()

    def __repr__(self) -> str:
        num_open = sum(len(kept.tally.open) for kept in self._kept)
        return f"<Reconciliation checks={len(self._kept)} open={num_open}>"

    def tallies(self) -> list[Tally]:
        """Of every check, in the order in which they look."""
        return [kept.tally for kept in self._kept]

    async def run(self) -> None:
        """Have those look whose turn it is, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(self._tick_s)

    async def look(self, *, is_whole: bool = False) -> dict[str, list[Finding]]:
        """Have those look whose turn it is; what they found, by name.

        ``is_whole``: have all look, at everything.
        """
        async with self._turn:
            found: dict[str, list[Finding]] = {}
            for kept in self._kept:
                if not is_whole and self._clock.monotonic() < kept.due_at:
                    continue
                try:
                    found[kept.check.name] = await self._have_look(kept, is_whole=is_whole)
                except StoreUnavailable as error:
                    # What comes after rests on what comes before; all of it is tried again.
                    log.warning("store_refused", check=kept.check.name, error=str(error))
                    break
            return found

    async def _have_look(self, kept: _Kept, *, is_whole: bool) -> list[Finding]:
        kept.due_at = self._clock.monotonic() + kept.check.every_s
        try:
            findings = await (kept.check.look_at_all() if is_whole else kept.check.look())
        except StoreUnavailable:
            kept.due_at = 0.0
            raise
        except Exception:
            # A fault of ours in one check must not keep the others from looking.
            kept.tally = replace(kept.tally, num_failed=kept.tally.num_failed + 1)
            log.exception("check_failed", check=kept.check.name)
            return []
        self._count(kept, findings)
        return findings

    def _count(self, kept: _Kept, findings: Sequence[Finding]) -> None:
        known = {each.subject for each in kept.tally.open}
        new = [each for each in findings if each.is_repaired or each.subject not in known]
        kept.tally = replace(
            kept.tally,
            num_looks=kept.tally.num_looks + 1,
            num_found=kept.tally.num_found + len(new),
            num_repaired=kept.tally.num_repaired + sum(each.is_repaired for each in new),
            looked_at=self._clock.now(),
            open=tuple(each for each in findings if not each.is_repaired),
        )
        for each in new[:MOST_LOGGED]:
            log.warning(
                "drift_repaired" if each.is_repaired else "drift_found",
                check=kept.check.name,
                subject=each.subject,
                problem=each.problem,
            )
        if len(new) > MOST_LOGGED:
            num_more = len(new) - MOST_LOGGED
            log.warning("more_drift", check=kept.check.name, num_more=num_more)


def _blank(check: Check) -> Tally:
    return Tally(check.name, check.looks_at, check.repair, check.every_s)
