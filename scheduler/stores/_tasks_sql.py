"""The statements about tasks, their attempts and output: rows to records and back.

Every statement is one index look-up or touches only what it returns; the partial indexes they rest
on are in ``_migrations``. Values are bound, never written into SQL.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from operator import attrgetter
from typing import Any

from handlers.wire import TokenLogprob, logprob_document, parse_logprob
from scheduler.flow import Ahead
from scheduler.stores import base
from scheduler.stores._connection import Connection, Row
from scheduler.task import Attempt, JournalChunk, Task, TaskError, TaskState

#: JSON text of documents that a connection keeps parsed, in bytes.
DOCUMENT_CACHE_BYTES = 16 * 1024 * 1024

# In the order of the record, so that a row is one: the document, which is kept apart, excepted.
_COLUMNS = [field.name for field in fields(Task) if field.name != "document"]
_DOCUMENT_PLACE = [field.name for field in fields(Task)].index("document")
_STATE, _RESULT, _ERROR, _IS_DEAD = map(_COLUMNS.index, ("state", "result", "error", "is_dead"))
#: What never changes once a task is accepted.
_FIXED = {
    "id", "tenant", "model", "priority", "idempotency_key", "deadline_at", "estimated_cost",
    "prompt_cost", "cost_per_token", "accepted_at", "resume", "priority_class", "bulk_id",
    "bulk_index",
}  # fmt: skip
_MOVING = [name for name in _COLUMNS if name not in _FIXED]

SELECT = f"SELECT {', '.join(_COLUMNS)} FROM tasks"
_INSERT = f"INSERT INTO tasks ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"
_UPDATE = f"UPDATE tasks SET {', '.join(f'{name} = ?' for name in _MOVING)} WHERE id = ?"
_ORDER = "priority DESC, deadline_at IS NULL, deadline_at, id"
_HEAD = (
    f"{SELECT} WHERE state = 'queued' AND model = ? AND priority_class = ? AND tenant = ?"
    f" ORDER BY {_ORDER} LIMIT 1"
)
_PAST_DEADLINE = (
    f"{SELECT} WHERE deadline_at IS NOT NULL AND finished_at IS NULL"
    " AND deadline_at <= ? ORDER BY deadline_at LIMIT ?"
)
_EXPIRED_LEASES = (
    f"{SELECT} WHERE state = 'leased' AND lease_expires_at <= ? ORDER BY lease_expires_at LIMIT ?"
)
_DUE = f"{SELECT} WHERE state = 'delayed' AND not_before <= ? ORDER BY not_before LIMIT ?"
_ATTEMPT = [field.name for field in fields(Attempt)]
#: Everything that is kept of a task beside its row.
_PARTS = ("documents", "journal", "attempts")


class DocumentCache:
    """Documents by task, parsed. They never change, so what is kept is never wrong."""

    def __init__(self, max_bytes: int = DOCUMENT_CACHE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._kept: OrderedDict[str, tuple[Mapping[str, Any], int]] = OrderedDict()

    def get(self, task_id: str) -> Mapping[str, Any] | None:
        found = self._kept.get(task_id)
        if found is None:
            return None
        self._kept.move_to_end(task_id)
        return found[0]

    def keep(self, task_id: str, document: Mapping[str, Any], size: int) -> None:
        if task_id in self._kept or size > self._max_bytes:
            return
        self._kept[task_id] = (document, size)
        self._num_bytes += size
        while self._num_bytes > self._max_bytes:
            _, (_, freed) = self._kept.popitem(last=False)
            self._num_bytes -= freed


class Tasks(base.TaskTables):
    """Tasks, leases, attempts and the journal."""

    _db: Connection

    def __init__(self) -> None:
        self._documents = DocumentCache()

    # -- tasks

    def add_task(self, task: Task) -> None:
        self._db.write(_INSERT, *_values(task))
        self._db.write("INSERT INTO documents VALUES (?, ?)", task.id, _dump(task.document))

    def put_task(self, task: Task) -> None:
        self._db.write(_UPDATE, *_moving(task), task.id)

    def task(self, task_id: str) -> Task | None:
        return self._task(self._db.row(f"{SELECT} WHERE id = ?", task_id))

    def task_by_key(self, tenant: str, idempotency_key: str) -> Task | None:
        where = "WHERE tenant = ? AND idempotency_key = ?"
        return self._task(self._db.row(f"{SELECT} {where}", tenant, idempotency_key))

    def tasks(
        self,
        *,
        tenant: str | None = None,
        model: str | None = None,
        state: TaskState | None = None,
        is_dead: bool = False,
        limit: int,
        before: str | None = None,
    ) -> list[Task]:
        wanted = {
            "tenant = ?": tenant,
            "model = ?": model,
            "state = ?": state and state.value,
            "is_dead = ?": 1 if is_dead else None,
            "id < ?": before,
        }
        given = {condition: value for condition, value in wanted.items() if value is not None}
        where = f"WHERE {' AND '.join(given)}" if given else ""
        statement = f"{SELECT} {where} ORDER BY id DESC LIMIT ?"
        return self._tasks(self._db.rows(statement, *given.values(), limit))

    def head(self, model: str, priority_class: str, tenant: str) -> Task | None:
        return self._task(self._db.row(_HEAD, model, priority_class, tenant))

    def ahead(self, task: Task, limit: int) -> tuple[int, int]:
        deadline = "deadline_at IS NOT NULL" if task.deadline_at is None else "deadline_at < ?"
        same = "deadline_at IS NULL" if task.deadline_at is None else "deadline_at = ?"
        at = () if task.deadline_at is None else (task.deadline_at,)
        statement = (
            "SELECT COUNT(*), COALESCE(SUM(cost), 0) FROM ("
            " SELECT estimated_cost - settled_cost AS cost FROM tasks WHERE state = 'queued'"
            " AND model = ? AND priority_class = ? AND tenant = ?"
            f" AND (priority > ? OR (priority = ? AND ({deadline} OR ({same} AND id < ?))))"
            " LIMIT ?) AS before_it"
        )
        flow = (task.model, task.priority_class, task.tenant)
        row = self._db.row(statement, *flow, task.priority, task.priority, *at, *at, task.id, limit)
        assert row is not None
        return int(row[0]), int(row[1])

    def queued_before(self, task: Task, limit: int) -> Ahead:
        statement = (
            "SELECT COUNT(*), COALESCE(SUM(cost), 0), COUNT(DISTINCT tenant) FROM ("
            " SELECT tenant, estimated_cost - settled_cost AS cost FROM tasks"
            " WHERE state = 'queued' AND model = ? AND priority_class = ? AND tenant <> ? AND id < ?"
            " LIMIT ?) AS before_it"
        )
        flow = (task.model, task.priority_class, task.tenant)
        row = self._db.row(statement, *flow, task.id, limit)
        assert row is not None
        return Ahead(int(row[0]), int(row[1]), int(row[2]), int(row[0]) >= limit)

    def due(self, now: float, limit: int) -> list[Task]:
        return self._tasks(self._db.rows(_DUE, now, limit))

    def delete_finished(self, before: float, limit: int) -> int:
        statement = "SELECT id FROM tasks WHERE finished_at < ? ORDER BY finished_at LIMIT ?"
        ids = [(row[0],) for row in self._db.rows(statement, before, limit)]
        for table in _PARTS:
            self._db.write_many(f"DELETE FROM {table} WHERE task_id = ?", ids)
        self._db.write_many("DELETE FROM tasks WHERE id = ?", ids)
        return len(ids)

    def _task(self, row: Row | None) -> Task | None:
        if row is None:
            return None
        values = list(row)
        values[_STATE] = TaskState(values[_STATE])
        values[_IS_DEAD] = bool(values[_IS_DEAD])
        if values[_RESULT] is not None:
            values[_RESULT] = json.loads(values[_RESULT])
        if values[_ERROR] is not None:
            values[_ERROR] = TaskError(**json.loads(values[_ERROR]))
        values.insert(_DOCUMENT_PLACE, self._document(values[0]))
        return Task(*values)

    def _tasks(self, rows: Sequence[Row]) -> list[Task]:
        return [task for row in rows if (task := self._task(row)) is not None]

    def _document(self, task_id: str) -> Mapping[str, Any]:
        document = self._documents.get(task_id)
        if document is None:
            row = self._db.row("SELECT document FROM documents WHERE task_id = ?", task_id)
            assert row is not None, f"task {task_id} has no document"
            document = json.loads(row[0])
            assert isinstance(document, dict)
            self._documents.keep(task_id, document, len(row[0]))
        return document

    # -- leases and deadlines

    def extend_lease(self, task_id: str, fence: int, runner: str, expires_at: float) -> bool:
        statement = (
            "UPDATE tasks SET lease_expires_at = ?"
            " WHERE id = ? AND fence = ? AND runner = ? AND state = 'leased'"
        )
        return self._db.count(statement, expires_at, task_id, fence, runner) == 1

    def extend_leases(self, expires_at: float) -> int:
        statement = (
            "UPDATE tasks SET lease_expires_at = CASE WHEN lease_expires_at > ? THEN"
            " lease_expires_at ELSE ? END WHERE state = 'leased'"
        )
        return self._db.count(statement, expires_at, expires_at)

    def leases(self, runner: str) -> list[Task]:
        where = "WHERE state = 'leased' AND runner = ? ORDER BY id"
        return self._tasks(self._db.rows(f"{SELECT} {where}", runner))

    def leases_of(self, model: str) -> list[Task]:
        where = "WHERE state = 'leased' AND model = ? ORDER BY id"
        return self._tasks(self._db.rows(f"{SELECT} {where}", model))

    def expired_leases(self, now: float, limit: int) -> list[Task]:
        return self._tasks(self._db.rows(_EXPIRED_LEASES, now, limit))

    def past_deadline(self, now: float, limit: int) -> list[Task]:
        return self._tasks(self._db.rows(_PAST_DEADLINE, now, limit))

    # -- attempts and output

    def add_attempt(self, task_id: str, attempt: Attempt) -> None:
        names = ", ".join(["task_id", *_ATTEMPT])
        places = ", ".join("?" * (1 + len(_ATTEMPT)))
        self._db.write(
            f"INSERT INTO attempts ({names}) VALUES ({places})", task_id, *_attempt(attempt)
        )

    def attempts(self, task_id: str) -> list[Attempt]:
        statement = f"SELECT {', '.join(_ATTEMPT)} FROM attempts WHERE task_id = ? ORDER BY number"
        return [Attempt(*row) for row in self._db.rows(statement, task_id)]

    def add_chunks(self, task_id: str, chunks: Sequence[JournalChunk]) -> None:
        self._db.write_many(
            "INSERT INTO journal (task_id, seq, token_ids, text, answer, logprobs)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            [
                (task_id, c.seq, _dump(c.token_ids), c.text, c.index, _logprobs(c.logprobs))
                for c in chunks
            ],
        )

    def chunks(self, task_id: str, cursor: int, limit: int) -> list[JournalChunk]:
        statement = (
            "SELECT seq, token_ids, text, answer, logprobs FROM journal"
            " WHERE task_id = ? AND seq >= ? ORDER BY seq LIMIT ?"
        )
        return [_chunk(*row) for row in self._db.rows(statement, task_id, cursor, limit)]

    def token_ids(self, task_id: str) -> tuple[tuple[int, ...], ...]:
        statement = "SELECT answer, token_ids FROM journal WHERE task_id = ? ORDER BY seq"
        answers: list[list[int]] = []
        for answer, ids in self._db.rows(statement, task_id):
            if tokens := json.loads(ids):
                answers += [[] for _ in range(answer + 1 - len(answers))]
                answers[answer] += tokens
        return tuple(map(tuple, answers))


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _logprobs(given: tuple[TokenLogprob, ...]) -> str | None:
    return _dump([logprob_document(each) for each in given]) if given else None


def _chunk(seq: int, ids: str, text: str, answer: int, logprobs: str | None) -> JournalChunk:
    known = () if logprobs is None else tuple(map(parse_logprob, json.loads(logprobs)))
    return JournalChunk(seq, tuple(json.loads(ids)), text, answer, known)


# Compiled getters: these run several times for every chunk of every answer.
_attempt = attrgetter(*_ATTEMPT)
_everything, _what_moves = attrgetter(*_COLUMNS), attrgetter(*_MOVING)


def _values(task: Task) -> list[Any]:
    return _plain(_everything(task), _COLUMNS_PLACES, task)


def _moving(task: Task) -> list[Any]:
    return _plain(_what_moves(task), _MOVING_PLACES, task)


_PLAIN_NAMES = ("state", "result", "error", "is_dead")
_COLUMNS_PLACES = tuple(map(_COLUMNS.index, _PLAIN_NAMES))
_MOVING_PLACES = tuple(map(_MOVING.index, _PLAIN_NAMES))


def _plain(given: tuple[Any, ...], places: tuple[int, ...], task: Task) -> list[Any]:
    """Values as columns hold them."""
    values = list(given)
    state, result, error, is_dead = places
    values[state] = task.state.value
    values[is_dead] = int(task.is_dead)
    if task.result is not None:
        values[result] = _dump(task.result)
    if task.error is not None:
        values[error] = _dump(asdict(task.error))
    return values
