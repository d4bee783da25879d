"""The statements of the SQLite store: rows to records and back.

Every statement is one index look-up or touches only what it returns; the partial indexes they rest
on are in ``sql/sqlite``. Values are bound, never written into SQL.
"""

from __future__ import annotations

import json
import sqlite3
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from operator import attrgetter
from typing import Any

from handlers.wire import TokenLogprob, logprob_document, parse_logprob
from scheduler.flow import DEFAULT_WEIGHT_PERMILLE, Flow
from scheduler.stores import base
from scheduler.task import Attempt, JournalChunk, Task, TaskError, TaskState

#: JSON text of documents that a connection keeps parsed, in bytes.
DOCUMENT_CACHE_BYTES = 16 * 1024 * 1024

# The constants of a task, then what moves; in the order of the columns.
_FIXED = [
    "id",
    "tenant",
    "model",
    "priority",
    "idempotency_key",
    "deadline_at",
    "estimated_cost",
    "prompt_cost",
    "cost_per_token",
    "accepted_at",
    "resume",
]
_MOVING = [
    "state",
    "charged_cost",
    "settled_cost",
    "charged_virtual_time",
    "attempt",
    "fence",
    "runner",
    "replica",
    "lease_expires_at",
    "num_chunks",
    "num_tokens",
    "first_claimed_at",
    "first_chunk_at",
    "finished_at",
    "result",
    "error",
]
_COLUMNS = _FIXED + _MOVING

_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM tasks"
_INSERT = f"INSERT INTO tasks ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"
_UPDATE = f"UPDATE tasks SET {', '.join(f'{name} = ?' for name in _MOVING)} WHERE id = ?"
_HEAD = (
    f"{_SELECT} WHERE state = 'queued' AND model = ? AND tenant = ?"
    " ORDER BY priority DESC, deadline_at IS NULL, deadline_at, id LIMIT 1"
)
_PAST_DEADLINE = (
    f"{_SELECT} WHERE deadline_at IS NOT NULL AND state IN ('queued', 'leased')"
    " AND deadline_at <= ? ORDER BY deadline_at LIMIT ?"
)
_EXPIRED_LEASES = (
    f"{_SELECT} WHERE state = 'leased' AND lease_expires_at <= ? ORDER BY lease_expires_at LIMIT ?"
)
_FLOW = "SELECT model, tenant, virtual_time, num_queued, charged_cost FROM flows WHERE model = ?"
_NEXT_FLOW = f"{_FLOW} AND num_queued > 0 ORDER BY virtual_time, tenant LIMIT 1"


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


class Transaction(base.Transaction):
    """The statements, on one connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._documents = DocumentCache()

    def _rows(self, statement: str, *values: Any) -> list[Any]:
        return self._connection.execute(statement, values).fetchall()

    def _row(self, statement: str, *values: Any) -> Any:
        return self._connection.execute(statement, values).fetchone()

    def _write(self, statement: str, *values: Any) -> int:
        return self._connection.execute(statement, values).rowcount

    # -- tasks

    def add_task(self, task: Task) -> None:
        document = _dump(task.document)
        self._write(_INSERT, *_fixed(task), *_moving(task))
        self._write("INSERT INTO documents VALUES (?, ?)", task.id, document)

    def put_task(self, task: Task) -> None:
        self._write(_UPDATE, *_moving(task), task.id)

    def task(self, task_id: str) -> Task | None:
        return self._task(self._row(f"{_SELECT} WHERE id = ?", task_id))

    def task_by_key(self, tenant: str, idempotency_key: str) -> Task | None:
        where = "WHERE tenant = ? AND idempotency_key = ?"
        return self._task(self._row(f"{_SELECT} {where}", tenant, idempotency_key))

    def tasks(
        self,
        *,
        tenant: str | None,
        model: str | None,
        state: TaskState | None,
        limit: int,
        before: str | None,
    ) -> list[Task]:
        wanted = {
            "tenant = ?": tenant,
            "model = ?": model,
            "state = ?": state and state.value,
            "id < ?": before,
        }
        given = {condition: value for condition, value in wanted.items() if value is not None}
        where = f"WHERE {' AND '.join(given)}" if given else ""
        statement = f"{_SELECT} {where} ORDER BY id DESC LIMIT ?"
        return self._tasks(self._rows(statement, *given.values(), limit))

    def head(self, model: str, tenant: str) -> Task | None:
        return self._task(self._row(_HEAD, model, tenant))

    def depth(self) -> dict[str, int]:
        statement = "SELECT model, SUM(num_queued) FROM flows WHERE num_queued > 0 GROUP BY model"
        return dict(self._rows(statement))

    def _task(self, row: Any) -> Task | None:
        if row is None:
            return None
        values = dict(zip(_COLUMNS, row, strict=True))
        values["state"] = TaskState(values["state"])
        values["document"] = self._document(values["id"])
        if values["result"] is not None:
            values["result"] = json.loads(values["result"])
        if values["error"] is not None:
            values["error"] = TaskError(**json.loads(values["error"]))
        return Task(**values)

    def _tasks(self, rows: list[Any]) -> list[Task]:
        return [task for row in rows if (task := self._task(row)) is not None]

    def _document(self, task_id: str) -> Mapping[str, Any]:
        document = self._documents.get(task_id)
        if document is None:
            (text,) = self._row("SELECT document FROM documents WHERE task_id = ?", task_id)
            document = json.loads(text)
            assert isinstance(document, dict)
            self._documents.keep(task_id, document, len(text))
        return document

    # -- leases and deadlines

    def extend_lease(self, task_id: str, fence: int, runner: str, expires_at: float) -> bool:
        statement = (
            "UPDATE tasks SET lease_expires_at = ?"
            " WHERE id = ? AND fence = ? AND runner = ? AND state = 'leased'"
        )
        return self._write(statement, expires_at, task_id, fence, runner) == 1

    def extend_leases(self, expires_at: float) -> int:
        statement = (
            "UPDATE tasks SET lease_expires_at = MAX(lease_expires_at, ?) WHERE state = 'leased'"
        )
        return self._write(statement, expires_at)

    def leases(self, runner: str) -> list[Task]:
        where = "WHERE state = 'leased' AND runner = ? ORDER BY id"
        return self._tasks(self._rows(f"{_SELECT} {where}", runner))

    def expired_leases(self, now: float, limit: int) -> list[Task]:
        return self._tasks(self._rows(_EXPIRED_LEASES, now, limit))

    def past_deadline(self, now: float, limit: int) -> list[Task]:
        return self._tasks(self._rows(_PAST_DEADLINE, now, limit))

    # -- attempts and output

    def add_attempt(self, task_id: str, attempt: Attempt) -> None:
        statement = "INSERT INTO attempts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        self._write(statement, task_id, *_attempt(attempt))

    def put_attempt(self, task_id: str, attempt: Attempt) -> None:
        statement = (
            "UPDATE attempts SET ended_at = ?, outcome = ?, reason = ?"
            " WHERE task_id = ? AND number = ?"
        )
        ended = (attempt.ended_at, attempt.outcome, attempt.reason)
        self._write(statement, *ended, task_id, attempt.number)

    def attempts(self, task_id: str) -> list[Attempt]:
        statement = (
            "SELECT number, fence, runner, replica, started_at, num_tokens_before, ended_at,"
            " outcome, reason FROM attempts WHERE task_id = ? ORDER BY number"
        )
        return [Attempt(*row) for row in self._rows(statement, task_id)]

    def add_chunks(self, task_id: str, chunks: Sequence[JournalChunk]) -> None:
        self._connection.executemany(
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
        rows = self._rows(statement, task_id, cursor, limit)
        return [_chunk(*row) for row in rows]

    def token_ids(self, task_id: str) -> tuple[tuple[int, ...], ...]:
        statement = "SELECT answer, token_ids FROM journal WHERE task_id = ? ORDER BY seq"
        answers: list[list[int]] = []
        for answer, ids in self._rows(statement, task_id):
            if tokens := json.loads(ids):
                answers += [[] for _ in range(answer + 1 - len(answers))]
                answers[answer] += tokens
        return tuple(map(tuple, answers))

    # -- flows

    def flow(self, model: str, tenant: str) -> Flow:
        row = self._row(f"{_FLOW} AND tenant = ?", model, tenant)
        return Flow(model, tenant) if row is None else Flow(*row)

    def put_flow(self, flow: Flow) -> None:
        statement = (
            "INSERT INTO flows VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
            " virtual_time = excluded.virtual_time, num_queued = excluded.num_queued,"
            " charged_cost = excluded.charged_cost"
        )
        counters = (flow.virtual_time, flow.num_queued, flow.charged_cost)
        self._write(statement, flow.model, flow.tenant, *counters)

    def next_flow(self, model: str) -> Flow | None:
        row = self._row(_NEXT_FLOW, model)
        return None if row is None else Flow(*row)

    def flows(self, model: str) -> list[Flow]:
        return [Flow(*row) for row in self._rows(f"{_FLOW} ORDER BY tenant", model)]

    def virtual_floor(self, model: str) -> int:
        row = self._row("SELECT virtual_floor FROM pools WHERE model = ?", model)
        return 0 if row is None else int(row[0])

    def put_virtual_floor(self, model: str, virtual_time: int) -> None:
        self._write("INSERT OR REPLACE INTO pools VALUES (?, ?)", model, virtual_time)

    # -- operator's data

    def weight(self, tenant: str) -> int:
        row = self._row("SELECT weight_permille FROM weights WHERE tenant = ?", tenant)
        return DEFAULT_WEIGHT_PERMILLE if row is None else int(row[0])

    def weights(self) -> dict[str, int]:
        return dict(self._rows("SELECT tenant, weight_permille FROM weights ORDER BY tenant"))

    def put_weight(self, tenant: str, weight_permille: int) -> None:
        self._write("INSERT OR REPLACE INTO weights VALUES (?, ?)", tenant, weight_permille)

    def desired_replicas(self) -> dict[str, int]:
        statement = "SELECT model, num_replicas FROM desired_replicas ORDER BY model"
        return dict(self._rows(statement))

    def put_desired_replicas(self, model: str, num_replicas: int) -> None:
        self._write("INSERT OR REPLACE INTO desired_replicas VALUES (?, ?)", model, num_replicas)


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _logprobs(given: tuple[TokenLogprob, ...]) -> str | None:
    return _dump([logprob_document(each) for each in given]) if given else None


def _chunk(seq: int, ids: str, text: str, answer: int, logprobs: str | None) -> JournalChunk:
    known = () if logprobs is None else tuple(map(parse_logprob, json.loads(logprobs)))
    return JournalChunk(seq, tuple(json.loads(ids)), text, answer, known)


# Compiled getters: these run several times for every chunk of every answer.
_fixed = attrgetter(*_FIXED)
_attempt = attrgetter(*(field.name for field in fields(Attempt)))
_moving_as_they_are = attrgetter(*_MOVING)
_STATE, _RESULT, _ERROR = (_MOVING.index(name) for name in ("state", "result", "error"))


def _moving(task: Task) -> list[Any]:
    values = list(_moving_as_they_are(task))
    values[_STATE] = task.state.value
    if task.result is not None:
        values[_RESULT] = _dump(task.result)
    if task.error is not None:
        values[_ERROR] = _dump(asdict(task.error))
    return values
