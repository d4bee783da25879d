"""The statements about tasks, their attempts and output: rows to records and back.

Every statement is one index look-up or touches only what it returns; the partial indexes they rest
on are in ``_migrations``. Values are bound, never written into SQL.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, Final

from handlers.wire import TokenLogprob, logprob_document, parse_logprob
from scheduler.flow import Ahead
from scheduler.records import asdict, changed
from scheduler.stores import base
from scheduler.stores._connection import Connection, Row
from scheduler.stores._in_memory import PAGE, KnownTasks, Queue
from scheduler.task import Attempt, JournalChunk, Task, TaskError, TaskState

#: Documents that one statement reads, so that there are not as many statements as numbers of them.
_DOCUMENTS_AT_ONCE: Final = 16
#: Flows of which the queue is kept.
_MAX_QUEUES: Final = 10_000

# In the order of the record, so that a row is one: the document, which is kept apart, excepted.
_COLUMNS = [name for name in Task.__struct_fields__ if name != "document"]
_DOCUMENT_PLACE = Task.__struct_fields__.index("document")
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
#: In the place of a document that is not there: its task can be read, and the check
#: ``tasks_without_request`` finds it.
LOST_DOCUMENT: Final = "{}"
_WHOLE = (
    f"SELECT {', '.join(_COLUMNS)}, COALESCE(document, '{LOST_DOCUMENT}') FROM tasks"
    " LEFT JOIN documents ON task_id = id WHERE id = ?"
)
_DOCUMENTS = (
    "SELECT task_id, document FROM documents"
    f" WHERE task_id IN ({', '.join('?' * _DOCUMENTS_AT_ONCE)})"
)
_HEADS = (
    "SELECT priority, deadline_at, id FROM tasks"
    " WHERE state = 'queued' AND model = ? AND priority_class = ? AND tenant = ?"
    f" ORDER BY {_ORDER} LIMIT ?"
)
_PAST_DEADLINE = (
    f"{SELECT} WHERE deadline_at IS NOT NULL AND finished_at IS NULL"
    " AND deadline_at <= ? ORDER BY deadline_at LIMIT ?"
)
_EXPIRED_LEASES = (
    f"{SELECT} WHERE state = 'leased' AND lease_expires_at <= ? ORDER BY lease_expires_at LIMIT ?"
)
_DUE = f"{SELECT} WHERE state = 'delayed' AND not_before <= ? ORDER BY not_before LIMIT ?"
_DUE_AFTER = f"{SELECT} WHERE state = 'delayed' AND not_before > ? ORDER BY not_before DESC LIMIT ?"
_ATTEMPT = Attempt.__struct_fields__
#: Everything that is kept of a task beside its row.
PARTS = ("documents", "journal", "attempts")


class Tasks(base.TaskTables):
    """Tasks, leases, attempts and the journal."""

    _db: Connection

    def __init__(self) -> None:
        self._known = KnownTasks()
        #: By flow.
        self._queues: dict[tuple[str, str, str], Queue] = {}

    # -- for the owner of the transaction, who says when others may have written

    def _undo_tasks(self) -> None:
        self._known.undo()
        self._queues.clear()

    def _forget_tasks(self) -> None:
        self._known.doubt_all()
        self._queues.clear()

    # -- tasks

    def add_task(self, task: Task) -> None:
        document = _dump(task.document)
        self._db.write(_INSERT, *_values(task))
        self._db.write("INSERT INTO documents VALUES (?, ?)", task.id, document)
        self._keep(task, len(document))

    def put_task(self, task: Task) -> None:
        self._db.write(_UPDATE, *_moving(task), task.id)
        self._keep(task)

    def task(self, task_id: str) -> Task | None:
        known = self._known.task(task_id)
        if known is not None:
            return known
        if self._known.document(task_id) is not None:
            return self._one(self._db.row(f"{SELECT} WHERE id = ?", task_id))
        row = self._db.row(_WHOLE, task_id)
        return None if row is None else self._task(row[:-1], row[-1])

    def task_by_key(self, tenant: str, idempotency_key: str) -> Task | None:
        where = "WHERE tenant = ? AND idempotency_key = ?"
        return self._one(self._db.row(f"{SELECT} {where}", tenant, idempotency_key))

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
            "id < ?": before,
        }
        given = {condition: value for condition, value in wanted.items() if value is not None}
        # Not bound: the index of dead letters holds no others.
        conditions = [*given, "is_dead = 1"] if is_dead else list(given)
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        statement = f"{SELECT} {where} ORDER BY id DESC LIMIT ?"
        return self._tasks(self._db.rows(statement, *given.values(), limit))

    def head(self, model: str, priority_class: str, tenant: str) -> Task | None:
        flow = (model, priority_class, tenant)
        queue = self._queues.get(flow)
        if queue is None or (queue.first() is None and not queue.is_all):
            rows = self._db.rows(_HEADS, *flow, PAGE)
            places = [(-priority, at is None, at or 0.0, key) for priority, at, key in rows]
            if len(self._queues) >= _MAX_QUEUES:
                self._queues.clear()
            queue = self._queues[flow] = Queue(places, is_all=len(rows) < PAGE)
        task_id = queue.first()
        return None if task_id is None else self.task(task_id)

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
            " WHERE state = 'queued' AND model = ? AND priority_class = ? AND tenant <> ?"
            " AND id < ? LIMIT ?) AS before_it"
        )
        flow = (task.model, task.priority_class, task.tenant)
        row = self._db.row(statement, *flow, task.id, limit)
        assert row is not None
        return Ahead(int(row[0]), int(row[1]), int(row[2]), int(row[0]) >= limit)

    def due(self, now: float, limit: int) -> list[Task]:
        return self._tasks(self._db.rows(_DUE, now, limit))

    def due_after(self, moment: float, limit: int) -> list[Task]:
        return self._tasks(self._db.rows(_DUE_AFTER, moment, limit))

    def delete_finished(self, before: float, limit: int) -> int:
        statement = "SELECT id FROM tasks WHERE finished_at < ? ORDER BY finished_at LIMIT ?"
        ids = [(row[0],) for row in self._db.rows(statement, before, limit)]
        for table in PARTS:
            self._db.write_many(f"DELETE FROM {table} WHERE task_id = ?", ids)
        self._db.write_many("DELETE FROM tasks WHERE id = ?", ids)
        self._known.doubt(row[0] for row in ids)
        return len(ids)

    def _keep(self, task: Task, document_bytes: int | None = None) -> None:
        """A task is written: so it stands from now on."""
        self._known.keep(task, document_bytes)
        self._known.written(task.id)
        queue = self._queues.get((task.model, task.priority_class, task.tenant))
        if queue is not None:
            queue.put(task)

    def _one(self, row: Row | None) -> Task | None:
        return None if row is None else self._tasks([row])[0]

    def _tasks(self, rows: Sequence[Row]) -> list[Task]:
        missing = [row[0] for row in rows if self._known.document(row[0]) is None]
        documents = self._read_documents(missing) if missing else {}
        return [self._task(row, documents.get(row[0])) for row in rows]

    def _task(self, row: Row, document: str | None) -> Task:
        """A task of its row; ``document`` as it was read, None if it is known."""
        values = list(row)
        values[_STATE] = TaskState(values[_STATE])
        values[_IS_DEAD] = bool(values[_IS_DEAD])
        if values[_RESULT] is not None:
            values[_RESULT] = json.loads(values[_RESULT])
        if values[_ERROR] is not None:
            values[_ERROR] = TaskError(**json.loads(values[_ERROR]))
        parsed = self._known.document(values[0]) if document is None else json.loads(document)
        assert isinstance(parsed, dict), f"task {values[0]} has no document"
        values.insert(_DOCUMENT_PLACE, parsed)
        task = Task(*values)
        self._known.keep(task, None if document is None else len(document))
        return task

    def _read_documents(self, ids: Sequence[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for start in range(0, len(ids), _DOCUMENTS_AT_ONCE):
            some = ids[start : start + _DOCUMENTS_AT_ONCE]
            some = [*some, *[some[-1]] * (_DOCUMENTS_AT_ONCE - len(some))]
            found.update((key, text) for key, text in self._db.rows(_DOCUMENTS, *some))
        return {task_id: found.get(task_id, LOST_DOCUMENT) for task_id in ids}

    # -- leases and deadlines

    def extend_lease(self, task_id: str, fence: int, runner: str, expires_at: float) -> bool:
        statement = (
            "UPDATE tasks SET lease_expires_at = ?"
            " WHERE id = ? AND fence = ? AND runner = ? AND state = 'leased'"
        )
        is_held = self._db.count(statement, expires_at, task_id, fence, runner) == 1
        known = self._known.task(task_id)
        if is_held and known is not None:
            self._known.keep(changed(known, lease_expires_at=expires_at))
            self._known.written(task_id)
        return is_held

    def renew_leases(self, expires_at: float) -> int:
        statement = "UPDATE tasks SET lease_expires_at = ? WHERE state = 'leased'"
        self._known.doubt_all()
        return self._db.count(statement, expires_at)

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
