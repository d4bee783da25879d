"""The statements about nodes: registrations, placements, and who decides."""

from __future__ import annotations

from typing import Any, Final

from scheduler.records import astuple
from scheduler.registration import Leadership, Placement, Registration
from scheduler.stores import base
from scheduler.stores._connection import Connection
from scheduler.stores._flows_sql import upsert

_COLUMNS: Final = list(Registration.__struct_fields__)
_NODES: Final = f"SELECT {', '.join(_COLUMNS)} FROM nodes"
_PUT_NODE: Final = upsert("nodes", ", ".join(_COLUMNS), 1)
_IS_CONNECTED: Final = _COLUMNS.index("is_connected")
_PLACEMENTS: Final = "SELECT runner_id, epoch, replicas FROM placements"
_PUT_PLACEMENT: Final = upsert("placements", "runner_id, epoch, replicas", 1)
_LEADERS: Final = "SELECT role, holder, epoch, num_beats FROM leaders"
_PUT_LEADER: Final = upsert("leaders", "role, holder, epoch, num_beats", 1)


class Nodes(base.NodeTables):
    """Nodes; small tables, of which nothing is kept in memory."""

    _db: Connection

    def put_registration(self, registration: Registration) -> None:
        values: list[Any] = list(astuple(registration))
        values[_IS_CONNECTED] = int(registration.is_connected)
        self._db.write(_PUT_NODE, *values)

    def registration(self, runner_id: str) -> Registration | None:
        row = self._db.row(f"{_NODES} WHERE runner_id = ?", runner_id)
        return None if row is None else _registration(row)

    def registrations(self) -> list[Registration]:
        return [_registration(row) for row in self._db.rows(f"{_NODES} ORDER BY node, runner_id")]

    def delete_registration(self, runner_id: str) -> None:
        self._db.write("DELETE FROM nodes WHERE runner_id = ?", runner_id)

    def put_placement(self, placement: Placement) -> None:
        self._db.write(_PUT_PLACEMENT, *astuple(placement))

    def placements(self) -> list[Placement]:
        return [Placement(*row) for row in self._db.rows(f"{_PLACEMENTS} ORDER BY runner_id")]

    def delete_placement(self, runner_id: str) -> None:
        self._db.write("DELETE FROM placements WHERE runner_id = ?", runner_id)

    def leadership(self, role: str) -> Leadership:
        row = self._db.row(f"{_LEADERS} WHERE role = ?", role)
        return Leadership(role) if row is None else Leadership(*row)

    def put_leadership(self, leadership: Leadership) -> None:
        self._db.write(_PUT_LEADER, *astuple(leadership))


def _registration(row: Any) -> Registration:
    values = list(row)
    values[_IS_CONNECTED] = bool(values[_IS_CONNECTED])
    return Registration(*values)
