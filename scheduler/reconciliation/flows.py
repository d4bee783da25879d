"""Flows whose counts are not what the tasks say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from scheduler import moves
from scheduler.drift import Finding
from scheduler.reconciliation.base import Check, Parts
from scheduler.stores.base import FlowName, Transaction

#: Flows, and tasks in them, that one look counts.
_MOST_FLOWS: Final = 200
_MOST_TASKS: Final = 100_000
#: Comes before every flow.
_START: Final[FlowName] = ("", "", "")


@dataclass(frozen=True, slots=True)
class _Page:
    #: Flows that count wrong, and what.
    wrong: Mapping[FlowName, str]
    #: Where the next page begins; None: this was the last.
    end: FlowName | None


class FlowsThatMiscount(Check):
    """Flows and bands that count other than their tasks.

    The first look is at all of them: a flow that counts tasks which are not there would stop the
    dispatcher. What a flow was charged is not counted: its tasks are removed when their retention
    is over, and their charges stay.
    """

    name = "flows_that_miscount"
    looks_at = (
        "what flows count as queued, as leased and as held, and bands as active, against the tasks"
    )
    repair = "they are counted anew, in the transaction that writes them"
    every_s = 10.0

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self._at: FlowName | None = None

    async def look(self) -> list[Finding]:
        if self._at is None:
            return await self.look_at_all()
        return await self._look_from(self._at, is_whole=False)

    async def look_at_all(self) -> list[Finding]:
        return await self._look_from(_START, is_whole=True)

    async def _look_from(self, at: FlowName, *, is_whole: bool) -> list[Finding]:
        found: list[Finding] = []
        while True:
            page = await self._parts.book.ledger.store.read(lambda tx: _page(tx, at))  # noqa: B023  # awaited here
            found += await self._mend(page.wrong)
            at = page.end or _START
            if page.end is None or not is_whole:
                self._at = at
                return found

    async def _mend(self, wrong: Mapping[FlowName, str]) -> list[Finding]:
        if wrong:
            book = self._parts.book
            await book.ledger.store.run(lambda tx: moves.recount(tx, book.rules, wrong))
        return [Finding(f"flow {' '.join(name)}", problem) for name, problem in wrong.items()]


def _page(tx: Transaction, after: FlowName) -> _Page:
    names = tx.flow_names(after, _MOST_FLOWS)
    leased: Mapping[FlowName, int] = tx.leased_by_flow()
    active: dict[tuple[str, str], int] = {}
    wrong: dict[FlowName, str] = {}
    num_tasks = 0
    for number, name in enumerate(names, 1):
        count = tx.count_flow(name, leased.get(name, 0))
        band = name[:2]
        if band not in active:
            active[band] = tx.waiting(*band).num_flows
        if problem := moves.miscount(tx, name, count, active[band]):
            wrong[name] = problem
        num_tasks += count.num_queued
        if num_tasks >= _MOST_TASKS and number < len(names):
            return _Page(wrong, name)
    return _Page(wrong, names[-1] if len(names) == _MOST_FLOWS else None)
