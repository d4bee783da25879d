"""The statements that find rows which do not belong together.

Each looks at an index, or at no more rows than it is asked for. Whose rows a table has is found by
leaps from one task to the next, however many rows each has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from scheduler.stores import base
from scheduler.stores._connection import Connection
from scheduler.stores._flows_sql import Flows
from scheduler.stores._tasks_sql import LOST_DOCUMENT, PARTS, Tasks
from scheduler.stores.base import FlowCount, FlowName, TaskParts
from scheduler.task import Task

_TO_NOBODY: Final = (
    "SELECT id FROM tasks WHERE state = 'leased' AND (runner IS NULL OR replica IS NULL"
    " OR leased_at IS NULL OR lease_expires_at IS NULL) LIMIT ?"
)
_OWNERS: Final = (
    "WITH RECURSIVE owners(id, number) AS ("
    " SELECT MIN(task_id), 1 FROM {table} WHERE task_id > ?"
    " UNION ALL SELECT (SELECT MIN(task_id) FROM {table} WHERE task_id > owners.id), number + 1"
    " FROM owners WHERE owners.id IS NOT NULL AND number < ?)"
    " SELECT owners.id, (SELECT COUNT(*) FROM tasks WHERE tasks.id = owners.id)"
    " FROM owners WHERE owners.id IS NOT NULL ORDER BY owners.id"
)
_PARTS: Final = (
    "SELECT id, (SELECT COUNT(*) FROM documents WHERE documents.task_id = tasks.id), num_chunks,"
    " COALESCE((SELECT MAX(seq) + 1 FROM journal WHERE journal.task_id = tasks.id), 0),"
    " (SELECT COUNT(*) FROM journal WHERE journal.task_id = tasks.id)"
    " FROM tasks WHERE id > ? ORDER BY id LIMIT ?"
)
_FLOW: Final = "model, priority_class, tenant"
_FLOWS_ON_RECORD: Final = (
    f"SELECT {_FLOW} FROM flows WHERE ({_FLOW}) > (?, ?, ?) ORDER BY {_FLOW} LIMIT ?"
)
#: The next flow with something queued, of the same band, of the model's next band, of the next
#: model: each is one leap in the queue's index, which a comparison of all three at once is not.
_NEXT_QUEUED: Final = tuple(
    f"SELECT {_FLOW} FROM tasks WHERE state = 'queued' AND {where} ORDER BY {_FLOW} LIMIT 1"
    for where in (
        "model = ? AND priority_class = ? AND tenant > ?",
        "model = ? AND priority_class > ?",
        "model > ?",
    )
)
_LEASED: Final = f"SELECT {_FLOW}, COUNT(*) FROM tasks WHERE state = 'leased' GROUP BY {_FLOW}"
_QUEUED: Final = (
    "SELECT COUNT(*), COALESCE(SUM(CASE WHEN estimated_cost > settled_cost"
    " THEN estimated_cost - settled_cost ELSE 0 END), 0) FROM tasks"
    " WHERE state = 'queued' AND model = ? AND priority_class = ? AND tenant = ?"
)


class RowChecks(Tasks, Flows, base.RowChecks):
    """Whether rows belong together."""

    _db: Connection

    def reread(self, task_id: str) -> Task | None:
        self._known.doubt([task_id])
        return self.task(task_id)

    def leased_to_nobody(self, limit: int) -> list[str]:
        return [row[0] for row in self._db.rows(_TO_NOBODY, limit)]

    def owners(self, table: str, after: str, limit: int) -> list[tuple[str, bool]]:
        statement = _OWNERS.format(table=_checked(table))
        return [(row[0], bool(row[1])) for row in self._db.rows(statement, after, limit)]

    def has_task(self, task_id: str) -> bool:
        return self._db.row("SELECT 1 FROM tasks WHERE id = ?", task_id) is not None

    def delete_parts(self, table: str, task_ids: Sequence[str]) -> None:
        statement = f"DELETE FROM {_checked(table)} WHERE task_id = ?"
        self._db.write_many(statement, [(task_id,) for task_id in task_ids])

    def task_parts(self, after: str, limit: int) -> list[TaskParts]:
        return [
            TaskParts(row[0], bool(row[1]), *map(int, row[2:5]))
            for row in self._db.rows(_PARTS, after, limit)
        ]

    def add_lost_document(self, task_id: str) -> bool:
        statement = (
            "INSERT INTO documents (task_id, document) SELECT id, ? FROM tasks WHERE id = ?"
            " ON CONFLICT (task_id) DO NOTHING"
        )
        return self._db.count(statement, LOST_DOCUMENT, task_id) == 1

    def journal_length(self, task_id: str, most: int) -> tuple[int, int]:
        num_chunks = num_tokens = 0
        for chunk in self.chunks(task_id, 0, most):
            if chunk.seq != num_chunks or num_chunks == most:
                break
            num_chunks, num_tokens = num_chunks + 1, num_tokens + len(chunk.token_ids)
        return num_chunks, num_tokens

    def cut_journal(self, task_id: str, num_chunks: int) -> int:
        statement = "DELETE FROM journal WHERE task_id = ? AND seq >= ?"
        return self._db.count(statement, task_id, num_chunks)

    def flow_names(self, after: FlowName, limit: int) -> list[FlowName]:
        self._flush_flows()
        names = {_name(row) for row in self._db.rows(_FLOWS_ON_RECORD, *after, limit)}
        names |= {name for name in self.leased_by_flow() if name > after}
        last = self._next_queued(after)
        for _ in range(limit):
            if last is None:
                break
            names.add(last)
            last = self._next_queued(last)
        return sorted(names)[:limit]

    def _next_queued(self, name: FlowName) -> FlowName | None:
        for num_given, statement in zip((3, 2, 1), _NEXT_QUEUED, strict=True):
            row = self._db.row(statement, *name[:num_given])
            if row is not None:
                return _name(row)
        return None

    def leased_by_flow(self) -> dict[FlowName, int]:
        return {_name(row): int(row[3]) for row in self._db.rows(_LEASED)}

    def count_flow(self, name: FlowName, num_leased: int) -> FlowCount:
        row = self._db.row(_QUEUED, *name)
        assert row is not None
        return FlowCount(int(row[0]), int(row[1]), num_leased)


def _checked(table: str) -> str:
    assert table in PARTS, table
    return table


def _name(row: Sequence[str]) -> FlowName:
    return row[0], row[1], row[2]
