"""The statements about scaling: the work there is, what replicas were measured to do, and what was
decided about their number."""

from __future__ import annotations

import json
from typing import Any, Final

from scheduler.scaling import MAX_DECISIONS, Measure, ModelLoad, ScaleDecision
from scheduler.stores import base
from scheduler.stores._flows_sql import Flows, upsert

_LOAD: Final = (
    "SELECT COALESCE(SUM(num_queued), 0), COALESCE(SUM(queued_cost), 0),"
    " COALESCE(SUM(charged_cost), 0) FROM flows WHERE model = ?"
)
#: What runs: the charge is an estimate, and what is done of it is on disk.
_RUNNING: Final = (
    "SELECT COUNT(*), COALESCE(SUM(estimated_cost), 0), COALESCE(SUM(charged_cost), 0),"
    " COALESCE(SUM(prompt_cost + cost_per_token * num_tokens), 0)"
    " FROM tasks WHERE state = 'leased' AND model = ?"
)
#: Flows of tenants that may have only so many tasks in flight, with what these have.
_CAPPED: Final = (
    "SELECT f.num_queued, f.queued_cost, t.max_in_flight,"
    " (SELECT SUM(o.num_leased) FROM flows AS o WHERE o.tenant = f.tenant)"
    " FROM flows AS f JOIN tenants AS t ON t.tenant = f.tenant"
    " WHERE f.model = ? AND f.num_queued > 0 AND t.max_in_flight IS NOT NULL"
)
_PUT_SCALED: Final = upsert("scaled_replicas", "model, num_replicas", 1)
_MEASURE_COLUMNS: Final = (
    "model, device_kind, cost_per_slot, was_full, first_chunk_s, used_ratio, start_times_s"
)
_WAS_FULL: Final = _MEASURE_COLUMNS.split(", ").index("was_full")
_PUT_MEASURE: Final = upsert("replica_measures", _MEASURE_COLUMNS, 2)
_DECISION_COLUMNS: Final = (
    "model, number, decided_at, last_at, num_times, action, num_before, num_after, reason,"
    " message, inputs"
)
_PUT_DECISION: Final = upsert("scale_decisions", _DECISION_COLUMNS, 2)


class Scaling(Flows, base.ScalingTables):
    """Load, measures and decisions."""

    def load(self, model: str) -> ModelLoad:
        self._flush_flows()
        flows = self._db.row(_LOAD, model)
        leased = self._db.row(_RUNNING, model)
        assert flows is not None
        assert leased is not None
        num_queued, queued, charged = map(int, flows)
        num_running, estimated, reserved, done = map(int, leased)
        may_run, may_cost = float(num_queued), float(queued)
        for num, cost, limit, in_flight in self._db.rows(_CAPPED, model):
            held_back = max(0, int(num) - max(0, int(limit) - int(in_flight)))
            may_run -= held_back
            may_cost -= float(cost) * held_back / int(num)
        return ModelLoad(
            num_queued=round(may_run),
            queued_cost=max(0.0, may_cost),
            all_queued_cost=float(queued),
            num_running=num_running,
            running_cost=float(estimated),
            running_done=float(done),
            served_cost=float(charged - reserved + done),
        )

    def scaled_replicas(self) -> dict[str, int]:
        rows = self._db.rows("SELECT model, num_replicas FROM scaled_replicas ORDER BY model")
        return {model: int(count) for model, count in rows}

    def put_scaled_replicas(self, model: str, num_replicas: int) -> None:
        self._db.write(_PUT_SCALED, model, num_replicas)

    def measures(self, model: str) -> list[Measure]:
        where = "WHERE model = ? ORDER BY device_kind"
        rows = self._db.rows(f"SELECT {_MEASURE_COLUMNS} FROM replica_measures {where}", model)
        return [_measure(*row) for row in rows]

    def put_measure(self, measure: Measure) -> None:
        self._db.write(
            _PUT_MEASURE,
            measure.model,
            measure.device_kind,
            measure.cost_per_slot,
            int(measure.was_full),
            measure.first_chunk_s,
            measure.used_ratio,
            json.dumps(measure.start_times_s),
        )

    def scale_decisions(self, model: str, limit: int) -> list[ScaleDecision]:
        where = "WHERE model = ? ORDER BY number DESC LIMIT ?"
        statement = f"SELECT {_DECISION_COLUMNS} FROM scale_decisions {where}"
        return [_decision(*row) for row in self._db.rows(statement, model, limit)]

    def put_scale_decision(self, decision: ScaleDecision) -> None:
        self._db.write(
            _PUT_DECISION,
            decision.model,
            decision.number,
            decision.decided_at,
            decision.last_at,
            decision.num_times,
            decision.action,
            decision.num_before,
            decision.num_after,
            decision.reason,
            decision.message,
            json.dumps(dict(decision.inputs)),
        )
        self._db.write(
            "DELETE FROM scale_decisions WHERE model = ? AND number <= ?",
            decision.model,
            decision.number - MAX_DECISIONS,
        )


def _measure(*row: Any) -> Measure:
    values = list(row)
    values[_WAS_FULL], values[-1] = bool(row[_WAS_FULL]), tuple(json.loads(row[-1]))
    return Measure(*values)


def _decision(*row: Any) -> ScaleDecision:
    values = list(row)
    values[-1] = json.loads(values[-1])
    return ScaleDecision(*values)
