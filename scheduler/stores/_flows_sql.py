"""The statements about flows, bands and tenants, and what is kept of them in memory.

Every move reads and writes a flow and its band, and moves that are committed together mostly the
same ones. So what was read is kept, and what was written goes to the database when the batch is
committed, or when a query looks for flows. A command that fails takes back what it changed of both.

Keeping is right only as long as nobody else writes: the owner of the transaction says when that
ends, with :meth:`forget`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, Final, TypeVar

from scheduler.flow import CLASS_WEIGHTS, DEFAULT_WEIGHT_PERMILLE, Ahead, Band, Flow, Tenant
from scheduler.records import astuple
from scheduler.stores import base
from scheduler.stores._connection import Connection
from scheduler.stores._in_memory import PAGE, Turns

Key = tuple[str, ...]
V = TypeVar("V", Flow, Band)

_FLOW_COLUMNS = ", ".join(Flow.__struct_fields__)
_BAND_COLUMNS = ", ".join(Band.__struct_fields__)
_TENANT_COLUMNS = (
    "tenant, weight_permille, max_queued, max_in_flight, cost_per_minute, classes, allowance,"
    " allowance_at"
)
_FLOWS = f"SELECT {_FLOW_COLUMNS} FROM flows"
_ACTIVE = "WHERE model = ? AND priority_class = ? AND num_queued > 0 AND is_held = 0"
_IN_TURN = "ORDER BY virtual_time, tenant LIMIT ?"
_NEXT_FLOWS = f"{_FLOWS} {_ACTIVE} {_IN_TURN}"
_NEXT_SMALL_FLOW = f"{_FLOWS} {_ACTIVE} AND num_leased < ? {_IN_TURN}"
_OF_BAND = "f.model = ? AND f.priority_class = ? AND f.num_queued > 0 AND f.is_held = 0"
_WAITING = (
    "SELECT COALESCE(SUM(f.num_queued), 0), COALESCE(SUM(f.queued_cost), 0), COUNT(*)"
    f" FROM flows AS f WHERE {_OF_BAND}"
)
#: Tasks that bring a flow up to the horizon; a little less than a half is added so that a part of a
#: task counts as one and a rounding error does not.
_WANTED = (
    "ROUND(CAST(CASE WHEN f.queued_cost > 0 THEN"
    " CAST(? - f.virtual_time AS DOUBLE PRECISION) * COALESCE(t.weight_permille, ?) / ?"
    " * f.num_queued / f.queued_cost ELSE f.num_queued END AS DOUBLE PRECISION) + 0.4999)"
)
_BELOW: Final = (
    "SELECT COALESCE(SUM(n), 0), COALESCE(SUM(n * queued_cost / num_queued), 0), COUNT(*)"
    " FROM (SELECT num_queued, queued_cost, CASE WHEN wanted < 1 THEN 1"
    " WHEN wanted > num_queued THEN num_queued ELSE wanted END AS n FROM ("
    f"SELECT f.num_queued, f.queued_cost, {_WANTED} AS wanted"
    " FROM flows AS f LEFT JOIN tenants AS t ON t.tenant = f.tenant"
    f" WHERE {_OF_BAND} AND f.tenant <> ?"
    " AND (f.virtual_time < ? OR (f.virtual_time = ? AND f.tenant < ?))"
    ") AS flows_wanted) AS cut"
)
#: Virtual time of a weighted token at a weight of a thousandth.
_UNIT: Final = 1_000_000


def upsert(table: str, columns: str, num_keys: int) -> str:
    """A statement that writes a row, the first ``num_keys`` columns of which say which."""
    names = columns.split(", ")
    keys, others = names[:num_keys], names[num_keys:]
    return (
        f"INSERT INTO {table} ({columns}) VALUES ({', '.join('?' * len(names))})"
        f" ON CONFLICT ({', '.join(keys)}) DO UPDATE SET"
        f" {', '.join(f'{name} = excluded.{name}' for name in others)}"
    )


_PUT_FLOW: Final = upsert("flows", _FLOW_COLUMNS, 3)
_PUT_BAND: Final = upsert("bands", _BAND_COLUMNS, 2)
_PUT_TENANT: Final = upsert("tenants", _TENANT_COLUMNS, 1)
_PUT_FLOOR: Final = upsert("pools", "model, virtual_floor", 1)
_PUT_CLASS: Final = upsert("classes", "priority_class, weight_permille", 1)
_PUT_FACTOR: Final = upsert("cost_factors", "model, device_kind, factor_permille", 2)
_PUT_REPLICAS: Final = upsert("desired_replicas", "model, num_replicas", 1)


class Flows(base.FlowTables):
    """Flows, bands, tenants and what operators set."""

    _db: Connection

    def __init__(self) -> None:
        self._flows: dict[Key, Flow] = {}
        #: By band.
        self._turns: dict[Key, Turns] = {}
        #: All bands of a model, by class.
        self._bands: dict[str, dict[str, Band]] = {}
        self._tenants: dict[str, Tenant] = {}
        self._classes: dict[str, int] | None = None
        self._factors: dict[tuple[str, str], int] = {}
        self._dirty_flows: set[Key] = set()
        self._dirty_bands: set[Key] = set()
        #: Of the command that runs: what it has replaced, flows that only it has to write, and what
        #: was sent to the database.
        self._replaced: list[tuple[dict[Any, Any], Any, Any]] = []
        self._new_flows: set[Key] = set()
        self._sent_flows: set[Key] = set()
        self._sent_bands: set[Key] = set()

    # -- for the owner of the transaction

    def begin(self) -> None:
        """A command begins."""
        self._replaced.clear()
        self._new_flows.clear()
        self._sent_flows.clear()
        self._sent_bands.clear()

    def undo(self) -> None:
        """The command has failed, and the database has forgotten what it wrote."""
        for kept, key, before in reversed(self._replaced):
            if before is None:
                kept.pop(key, None)
            else:
                kept[key] = before
        # What earlier commands had left to be sent went with it, if it was sent meanwhile.
        self._dirty_flows = (self._dirty_flows | self._sent_flows) - self._new_flows
        self._dirty_bands |= self._sent_bands
        self._turns.clear()
        self._tenants.clear()
        self._classes = None
        self._factors.clear()
        Flows.begin(self)

    def flush(self) -> None:
        """Send what was written."""
        self._flush_flows()
        for model, priority_class in sorted(self._dirty_bands):
            band = self._bands[model].get(priority_class)
            if band is not None:
                self._db.write(_PUT_BAND, *astuple(band))
        self._sent_bands |= self._dirty_bands
        self._dirty_bands.clear()

    def forget(self) -> None:
        """Others may have written: read everything anew."""
        Flows.begin(self)
        for kept in (self._flows, self._turns, self._bands, self._tenants, self._factors):
            kept.clear()
        self._classes = None
        self._dirty_flows.clear()
        self._dirty_bands.clear()

    def _flush_flows(self) -> None:
        # In one order everywhere, so that two databases' writers cannot wait for each other.
        for key in sorted(self._dirty_flows):
            self._db.write(_PUT_FLOW, *_flow_values(self._flows[key]))
        self._sent_flows |= self._dirty_flows
        self._dirty_flows.clear()

    # -- flows

    def flow(self, model: str, priority_class: str, tenant: str) -> Flow:
        key = (model, priority_class, tenant)
        flow = self._flows.get(key)
        if flow is None:
            where = "WHERE model = ? AND priority_class = ? AND tenant = ?"
            row = self._db.row(f"{_FLOWS} {where}", *key)
            flow = Flow(*key) if row is None else _flow(row)
            self._flows[key] = flow
        return flow

    def put_flow(self, flow: Flow) -> None:
        key = (flow.model, flow.priority_class, flow.tenant)
        self._replaced.append((self._flows, key, self._flows.get(key)))
        self._flows[key] = flow
        if key not in self._dirty_flows and key not in self._sent_flows:
            self._new_flows.add(key)
        self._dirty_flows.add(key)
        turns = self._turns.get(key[:2])
        if turns is not None:
            turns.put(flow)

    def next_flow(
        self, model: str, priority_class: str, most_leased: int | None = None
    ) -> Flow | None:
        if most_leased is not None:
            self._flush_flows()
            row = self._db.row(_NEXT_SMALL_FLOW, model, priority_class, most_leased, 1)
            return None if row is None else _flow(row)
        turns = self._turns.get((model, priority_class))
        if turns is None or turns.is_crowded:
            turns = self._read_turns(model, priority_class)
        found = turns.first(partial(self.flow, model, priority_class))
        if found is None and not turns.is_all:
            turns = self._read_turns(model, priority_class)
            found = turns.first(partial(self.flow, model, priority_class))
        return found

    def _read_turns(self, model: str, priority_class: str) -> Turns:
        self._flush_flows()
        rows = self._db.rows(_NEXT_FLOWS, model, priority_class, PAGE)
        flows = [_flow(row) for row in rows]
        for flow in flows:
            self._flows.setdefault((model, priority_class, flow.tenant), flow)
        turns = Turns(flows, is_all=len(flows) < PAGE)
        self._turns[model, priority_class] = turns
        return turns

    def flows(self, model: str) -> list[Flow]:
        return self._found("WHERE model = ? ORDER BY priority_class, tenant", model)

    def flows_of(self, tenant: str) -> list[Flow]:
        return self._found("WHERE tenant = ? ORDER BY model, priority_class", tenant)

    def depth(self) -> dict[str, int]:
        self._flush_flows()
        rows = self._db.rows(
            "SELECT model, SUM(num_queued) FROM flows WHERE num_queued > 0 GROUP BY model"
        )
        return {model: int(count) for model, count in rows}

    def _found(self, where: str, *values: Any) -> list[Flow]:
        self._flush_flows()
        return [_flow(row) for row in self._db.rows(f"{_FLOWS} {where}", *values)]

    def waiting(self, model: str, priority_class: str) -> Ahead:
        self._flush_flows()
        row = self._db.row(_WAITING, model, priority_class)
        return _ahead(row)

    def waiting_below(self, flow: Flow, horizon: int) -> Ahead:
        self._flush_flows()
        band = (flow.model, flow.priority_class, flow.tenant)
        given = (horizon, DEFAULT_WEIGHT_PERMILLE, _UNIT, *band, horizon, horizon, flow.tenant)
        return _ahead(self._db.row(_BELOW, *given))

    # -- bands

    def bands(self, model: str) -> Iterable[Band]:
        return self._bands_of(model).values()

    def band(self, model: str, priority_class: str) -> Band:
        found = self._bands_of(model).get(priority_class)
        return Band(model, priority_class) if found is None else found

    def put_band(self, band: Band) -> None:
        kept = self._bands_of(band.model)
        self._replaced.append((kept, band.priority_class, kept.get(band.priority_class)))
        kept[band.priority_class] = band
        self._dirty_bands.add((band.model, band.priority_class))

    def _bands_of(self, model: str) -> dict[str, Band]:
        kept = self._bands.get(model)
        if kept is None:
            statement = f"SELECT {_BAND_COLUMNS} FROM bands WHERE model = ? ORDER BY priority_class"
            kept = {row[1]: Band(*row) for row in self._db.rows(statement, model)}
            self._bands[model] = kept
        return kept

    def virtual_floor(self, model: str) -> int:
        row = self._db.row("SELECT virtual_floor FROM pools WHERE model = ?", model)
        return 0 if row is None else int(row[0])

    def put_virtual_floor(self, model: str, virtual_time: int) -> None:
        self._db.write(_PUT_FLOOR, model, virtual_time)

    # -- operator's data

    def tenant(self, name: str) -> Tenant:
        found = self._tenants.get(name)
        if found is None:
            row = self._db.row(f"SELECT {_TENANT_COLUMNS} FROM tenants WHERE tenant = ?", name)
            found = Tenant(name) if row is None else _tenant(*row)
            self._tenants[name] = found
        return found

    def tenants(self) -> list[Tenant]:
        rows = self._db.rows(f"SELECT {_TENANT_COLUMNS} FROM tenants ORDER BY tenant")
        return [_tenant(*row) for row in rows]

    def put_tenant(self, tenant: Tenant) -> None:
        self._tenants[tenant.name] = tenant
        classes = None if tenant.classes is None else " ".join(tenant.classes)
        self._db.write(
            _PUT_TENANT,
            tenant.name,
            tenant.weight_permille,
            tenant.max_queued,
            tenant.max_in_flight,
            tenant.cost_per_minute,
            classes,
            tenant.allowance,
            tenant.allowance_at,
        )

    def class_weights(self) -> dict[str, int]:
        if self._classes is None:
            rows = self._db.rows("SELECT priority_class, weight_permille FROM classes")
            self._classes = {**CLASS_WEIGHTS, **{name: int(weight) for name, weight in rows}}
        return self._classes

    def class_weight(self, priority_class: str) -> int:
        return self.class_weights().get(priority_class, DEFAULT_WEIGHT_PERMILLE)

    def put_class(self, priority_class: str, weight_permille: int) -> None:
        self._classes = None
        self._db.write(_PUT_CLASS, priority_class, weight_permille)

    def cost_factor(self, model: str, device_kind: str) -> int:
        key = (model, device_kind)
        if key not in self._factors:
            where = "WHERE model = ? AND device_kind = ?"
            row = self._db.row(f"SELECT factor_permille FROM cost_factors {where}", *key)
            self._factors[key] = 1000 if row is None else int(row[0])
        return self._factors[key]

    def cost_factors(self) -> dict[tuple[str, str], int]:
        rows = self._db.rows("SELECT model, device_kind, factor_permille FROM cost_factors")
        return {(model, kind): int(factor) for model, kind, factor in rows}

    def put_cost_factor(self, model: str, device_kind: str, factor_permille: int) -> None:
        self._factors.clear()
        self._db.write(_PUT_FACTOR, model, device_kind, factor_permille)

    def desired_replicas(self) -> dict[str, int]:
        rows = self._db.rows("SELECT model, num_replicas FROM desired_replicas ORDER BY model")
        return {model: int(count) for model, count in rows}

    def put_desired_replicas(self, model: str, num_replicas: int) -> None:
        self._db.write(_PUT_REPLICAS, model, num_replicas)

    def remove_desired_replicas(self, model: str) -> None:
        self._db.write("DELETE FROM desired_replicas WHERE model = ?", model)


def _ahead(row: Any) -> Ahead:
    return Ahead(round(row[0]), round(row[1]), int(row[2]))


def _flow_values(flow: Flow) -> list[Any]:
    values = list(astuple(flow))
    values[-1] = int(flow.is_held)
    return values


def _flow(row: Any) -> Flow:
    values = list(row)
    values[-1] = bool(values[-1])
    return Flow(*values)


def _tenant(
    name: str,
    weight: int,
    max_queued: int | None,
    max_in_flight: int | None,
    cost_per_minute: int | None,
    classes: str | None,
    allowance: float,
    allowance_at: float,
) -> Tenant:
    allowed = None if classes is None else tuple(classes.split())
    return Tenant(
        name, weight, max_queued, max_in_flight, cost_per_minute, allowed, allowance, allowance_at
    )
