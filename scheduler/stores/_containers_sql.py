"""The statements about containers: what was ordered, and what was noted of providers."""

from __future__ import annotations

from typing import Final

from scheduler.container import ContainerOrder, Flakiness, OrderState
from scheduler.records import astuple
from scheduler.stores import base
from scheduler.stores._connection import Connection
from scheduler.stores._flows_sql import upsert

_ORDER_COLUMNS: Final = list(ContainerOrder.__struct_fields__)
_STATE: Final = _ORDER_COLUMNS.index("state")
_ORDERS: Final = f"SELECT {', '.join(_ORDER_COLUMNS)} FROM container_orders"
_PUT_ORDER: Final = upsert("container_orders", ", ".join(_ORDER_COLUMNS), 2)
_NOTE_COLUMNS: Final = ", ".join(Flakiness.__struct_fields__)
_NOTES: Final = f"SELECT {_NOTE_COLUMNS} FROM provider_ledger"
_PUT_NOTE: Final = upsert("provider_ledger", _NOTE_COLUMNS, 2)


class Containers(base.ContainerTables):
    """Containers; small tables, of which nothing is kept in memory."""

    _db: Connection

    def container_orders(self) -> list[ContainerOrder]:
        found = []
        for row in self._db.rows(f"{_ORDERS} ORDER BY provider, ordinal"):
            values = list(row)
            values[_STATE] = OrderState(values[_STATE])
            found.append(ContainerOrder(*values))
        return found

    def put_container_order(self, order: ContainerOrder) -> None:
        values = list(astuple(order))
        values[_STATE] = order.state.value
        self._db.write(_PUT_ORDER, *values)

    def provider_ledger(self) -> list[Flakiness]:
        rows = self._db.rows(f"{_NOTES} ORDER BY provider, node_class")
        return [Flakiness(*row) for row in rows]

    def put_provider_note(self, note: Flakiness) -> None:
        self._db.write(_PUT_NOTE, *astuple(note))
