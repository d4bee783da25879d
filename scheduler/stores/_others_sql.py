"""The statements about bulks and keys."""

from __future__ import annotations

from typing import Any, Final

from scheduler.bulk import Bulk
from scheduler.keys import Key, Role
from scheduler.records import astuple
from scheduler.stores import base
from scheduler.stores._connection import Connection
from scheduler.stores._flows_sql import upsert
from scheduler.stores._tasks_sql import SELECT, Tasks
from scheduler.task import Task, TaskState

_BULK_COLUMNS: Final = ", ".join(Bulk.__struct_fields__)
_BULKS: Final = f"SELECT {_BULK_COLUMNS} FROM bulks"
_PUT_BULK: Final = upsert("bulks", _BULK_COLUMNS, 1)
_UNFINISHED: Final = ", ".join(f"'{state.value}'" for state in TaskState if not state.is_final)
_KEY_COLUMNS: Final = "id, tenant, role, secret_hash, created_at, name, revoked_at, expires_at"
_PUT_KEY: Final = upsert("tenant_keys", _KEY_COLUMNS, 1)


class Others(Tasks, base.OtherTables):
    """Bulks, which are made of tasks, and keys."""

    _db: Connection

    def put_bulk(self, bulk: Bulk) -> None:
        self._db.write(_PUT_BULK, *astuple(bulk))

    def bulk(self, bulk_id: str) -> Bulk | None:
        row = self._db.row(f"{_BULKS} WHERE id = ?", bulk_id)
        return None if row is None else Bulk(*row)

    def bulk_by_key(self, tenant: str, idempotency_key: str) -> Bulk | None:
        where = "WHERE tenant = ? AND idempotency_key = ?"
        row = self._db.row(f"{_BULKS} {where}", tenant, idempotency_key)
        return None if row is None else Bulk(*row)

    def bulks(self, *, tenant: str | None, limit: int, before: str | None) -> list[Bulk]:
        wanted = {"tenant = ?": tenant, "id < ?": before}
        given = {condition: value for condition, value in wanted.items() if value is not None}
        where = f"WHERE {' AND '.join(given)}" if given else ""
        statement = f"{_BULKS} {where} ORDER BY id DESC LIMIT ?"
        return [Bulk(*row) for row in self._db.rows(statement, *given.values(), limit)]

    def bulk_counts(self, bulk_id: str) -> dict[TaskState, int]:
        statement = "SELECT state, COUNT(*) FROM tasks WHERE bulk_id = ? GROUP BY state"
        return {TaskState(state): int(n) for state, n in self._db.rows(statement, bulk_id)}

    def bulk_tasks(self, bulk_id: str, start: int, limit: int) -> list[Task]:
        where = "WHERE bulk_id = ? AND bulk_index >= ? ORDER BY bulk_index LIMIT ?"
        return self._tasks(self._db.rows(f"{SELECT} {where}", bulk_id, start, limit))

    def bulk_unfinished(self, bulk_id: str, limit: int) -> list[Task]:
        where = f"WHERE bulk_id = ? AND state IN ({_UNFINISHED}) LIMIT ?"
        return self._tasks(self._db.rows(f"{SELECT} {where}", bulk_id, limit))

    def bulks_left_open(self, created_before: float, limit: int) -> list[Bulk]:
        where = "WHERE closed_at IS NULL AND created_at < ? ORDER BY id LIMIT ?"
        return [Bulk(*row) for row in self._db.rows(f"{_BULKS} {where}", created_before, limit)]

    def bulks_to_cancel(self, limit: int) -> list[Bulk]:
        has_some = (
            "EXISTS (SELECT 1 FROM tasks WHERE tasks.bulk_id = bulks.id"
            f" AND tasks.state IN ({_UNFINISHED}))"
        )
        where = f"WHERE cancelled_at IS NOT NULL AND {has_some} ORDER BY id LIMIT ?"
        return [Bulk(*row) for row in self._db.rows(f"{_BULKS} {where}", limit)]

    def delete_bulks(self, closed_before: float, limit: int) -> int:
        has_none = "NOT EXISTS (SELECT 1 FROM tasks WHERE tasks.bulk_id = bulks.id)"
        where = f"WHERE closed_at < ? AND {has_none} ORDER BY id LIMIT ?"
        ids = self._db.rows(f"SELECT id FROM bulks {where}", closed_before, limit)
        self._db.write_many("DELETE FROM bulks WHERE id = ?", ids)
        return len(ids)

    def put_key(self, key: Key) -> None:
        plain = (key.id, key.tenant, key.role.value, key.secret_hash, key.created_at, key.name)
        self._db.write(_PUT_KEY, *plain, key.revoked_at, key.expires_at)

    def key(self, key_id: str) -> Key | None:
        row = self._db.row(f"SELECT {_KEY_COLUMNS} FROM tenant_keys WHERE id = ?", key_id)
        return None if row is None else _key(*row)

    def keys(self, tenant: str | None) -> list[Key]:
        where, values = ("WHERE tenant = ?", (tenant,)) if tenant is not None else ("", ())
        statement = f"SELECT {_KEY_COLUMNS} FROM tenant_keys {where} ORDER BY id"
        return [_key(*row) for row in self._db.rows(statement, *values)]


def _key(key_id: str, tenant: str, role: str, *rest: Any) -> Key:
    return Key(key_id, tenant, Role(role), *rest)
