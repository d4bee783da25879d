"""Rows that do not belong together: output without its task, tasks without their request or output.

No transaction of ours leaves such rows. They come from outside: a table restored without another, a
row removed by hand, a page lost with its disk. Each of them would stop something for good (a reader
that waits for a chunk, a writer whose chunk is there already), so they are looked for, a page at a
time.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Final

from scheduler import moves
from scheduler.drift import Finding
from scheduler.reconciliation.base import Check, Parts
from scheduler.stores.base import TaskParts

#: Owners of rows that one look goes through; and tasks, of which each row of output is counted.
PAGE: Final = 1000
TASKS_PAGE: Final = 250


class _Paged(Check):
    """Goes through ids from the least to the greatest and begins again, a page a look."""

    every_s: ClassVar[float] = 10.0

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self._after = ""

    async def look(self) -> list[Finding]:
        return await self._look(is_whole=False)

    async def look_at_all(self) -> list[Finding]:
        self._after = ""
        return await self._look(is_whole=True)

    async def _look(self, *, is_whole: bool) -> list[Finding]:
        found: list[Finding] = []
        while True:
            some, last = await self._page(self._after)
            found += some
            self._after = last or ""
            if last is None or not is_whole:
                return found

    @abstractmethod
    async def _page(self, after: str) -> tuple[list[Finding], str | None]:
        """What is wrong with the page that begins after an id; its last id, None if it was the
        last page."""


class _WithoutTask(_Paged):
    """Rows of one or several tables whose task is not there."""

    tables: ClassVar[tuple[str, ...]]
    repair = "they are removed"

    async def _page(self, after: str) -> tuple[list[Finding], str | None]:
        # Ids of tables lie in any order beside each other: each has its own place.
        found: list[Finding] = []
        table, _, last = after.partition(" ") if after else (self.tables[0], "", "")
        store = self._parts.book.ledger.store
        owners = await store.read(lambda tx: tx.owners(table, last, PAGE))
        lost = [task_id for task_id, is_there in owners if not is_there]
        if lost:
            removed = await store.run(lambda tx: moves.remove_orphans(tx, table, lost))
            found = [
                Finding(f"{table} of task {task_id}", "there is no such task")
                for task_id in removed
            ]
        if len(owners) == PAGE:
            return found, f"{table} {owners[-1][0]}"
        following = self.tables[self.tables.index(table) + 1 :]
        return found, f"{following[0]} " if following else None


class ResultsWithoutTask(_WithoutTask):
    """What is left of tasks that are gone, their output excepted."""

    name = "results_without_task"
    looks_at = "requests and outcomes of attempts whose task is not there, a page at a time"
    tables = ("documents", "attempts")


class JournalsWithoutOwner(_WithoutTask):
    """Output of tasks that are gone."""

    name = "journals_without_owner"
    looks_at = "output whose task is not there, a page at a time"
    tables = ("journal",)


class _PagedTasks(_Paged):
    """Tasks whose other rows are not as they should be."""

    async def _page(self, after: str) -> tuple[list[Finding], str | None]:
        page = await self._parts.book.ledger.store.read(lambda tx: tx.task_parts(after, TASKS_PAGE))
        found: list[Finding] = []
        for parts in page:
            if self._is_wrong(parts):
                problem = await self._mend(parts.task_id)
                found += [Finding(f"task {parts.task_id}", problem)] if problem else []
        return found, page[-1].task_id if len(page) == TASKS_PAGE else None

    @staticmethod
    @abstractmethod
    def _is_wrong(parts: TaskParts) -> bool: ...

    @abstractmethod
    async def _mend(self, task_id: str) -> str:
        """What was wrong; empty if nothing is any more."""


class TasksWithoutRequest(_PagedTasks):
    """Tasks of which nobody knows what they ask."""

    name = "tasks_without_request"
    looks_at = "tasks whose request is not there, a page at a time"
    repair = "one that has not ended is cancelled, and says why; one that has can be read again"

    @staticmethod
    def _is_wrong(parts: TaskParts) -> bool:
        return not parts.has_document

    async def _mend(self, task_id: str) -> str:
        ledger, rules = self._parts.book.ledger, self._parts.book.rules
        now = ledger.clock.now()
        return await ledger.run(lambda tx: moves.mend_request(tx, rules, task_id, now))


class JournalsWithoutChunks(_PagedTasks):
    """Tasks whose output is not as long as they say, or has a gap."""

    name = "journals_without_chunks"
    looks_at = "tasks that count more or fewer chunks than there are, a page at a time"
    repair = "what follows a gap is removed; work under way is taken back and goes on from the rest"

    @staticmethod
    def _is_wrong(parts: TaskParts) -> bool:
        return not parts.num_chunks == parts.next_seq == parts.num_rows

    async def _mend(self, task_id: str) -> str:
        ledger, rules = self._parts.book.ledger, self._parts.book.rules
        now = ledger.clock.now()
        return await ledger.run(lambda tx: moves.mend_journal(tx, rules, task_id, now))
