"""Measures how fast models are served: each as a whole, and on each kind of device.

The ledger tells of every piece of work that is written down, the cluster how many slots are busy.
What other control planes serve on the same store is not measured here. What was measured on each
kind of device is kept in the store, where everybody finds it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

import structlog

from scheduler.cluster_view import READY, Cluster, NodeView, kept_slots
from scheduler.errors import StoreUnavailable
from scheduler.ledger import Ledger
from scheduler.moves import Change
from scheduler.records import changed
from scheduler.scaling import Measure, percentile_90
from scheduler.service_rate import Rate, RateMeter
from scheduler.stores.base import Transaction
from scheduler.task import Task, TaskState

log = structlog.get_logger(__name__)

#: Seconds between two times that what was measured is written down.
KEEP_S: Final = 15.0
#: First chunks whose times are remembered of a model on a kind of device.
_MAX_FIRST: Final = 100

#: A model, and a kind of device.
Place = tuple[str, str]


class Speedometer:
    """How fast every model is served."""

    def __init__(self, ledger: Ledger, cluster: Cluster) -> None:
        self._ledger, self._cluster = ledger, cluster
        self._meters: dict[str, RateMeter] = {}
        self._by_kind: dict[Place, RateMeter] = {}
        self._first_s: dict[Place, deque[float]] = {}
        #: Who works on each task, since a task that has ended does not say so any more.
        self._runners: dict[str, str] = {}
        self._kinds: dict[str, str] = {}
        ledger.on_changes(self._note)

    def __repr__(self) -> str:
        return f"<Speedometer models={len(self._meters)}>"

    def rates(self, now: float) -> dict[str, Rate | None]:
        """By model; None: too little was seen."""
        self._end_periods(now)
        return {model: meter.rate(now) for model, meter in self._meters.items()}

    def measured(self, now: float) -> dict[Place, Measure]:
        """What was measured on each kind of device."""
        self._end_periods(now)
        found: dict[Place, Measure] = {}
        for (model, kind), meter in self._by_kind.items():
            if (rate := meter.rate(now)) is not None:
                first_s = percentile_90(self._first_s.get((model, kind), ()))
                used = rate.used_ratio if rate.has_ended else None
                found[model, kind] = Measure(
                    model, kind, rate.per_slot, rate.was_full, first_s, used
                )
        return found

    async def run(self) -> None:
        """Write down what was measured, until cancelled."""
        while True:
            await asyncio.sleep(KEEP_S)
            try:
                await self.keep()
            except StoreUnavailable as error:
                log.warning("store_refused", error=str(error))

    async def keep(self) -> None:
        """Write down what was measured. What was measured with slots to spare says less than what
        was with every slot busy, and does not take its place."""
        measured = self.measured(self._ledger.clock.now())

        def command(tx: Transaction) -> None:
            for (model, kind), new in measured.items():
                old = next((m for m in tx.measures(model) if m.device_kind == kind), None)
                if old is None:
                    tx.put_measure(new)
                elif new.was_full or not old.was_full:
                    used = old.used_ratio if new.used_ratio is None else new.used_ratio
                    starts = old.start_times_s
                    tx.put_measure(changed(new, used_ratio=used, start_times_s=starts))

        if measured:
            await self._ledger.store.run(command)

    # -- measuring

    def _note(self, changes: tuple[Change, ...]) -> None:
        """Something is on disk: count what it says was served."""
        for change in changes:
            task = change.task
            if task.runner is not None:
                self._runners[task.id] = task.runner
            # From the claim on, so that the time of the first piece of work counts as well.
            if task.runner is not None or task.state is TaskState.SUCCEEDED:
                self._count(change, self._kind(task))
            if task.state is not TaskState.LEASED:
                self._runners.pop(task.id, None)
        self._end_periods(self._ledger.clock.now())

    def _kind(self, task: Task) -> str | None:
        """The kind of device a task runs on; None: not known."""
        runner = task.runner or self._runners.get(task.id)
        if runner is not None and runner not in self._kinds:
            self._look_at(_connected(self._cluster))
        return None if runner is None else self._kinds.get(runner)

    def _count(self, change: Change, kind: str | None) -> None:
        task = change.task
        meters = [self._meters.setdefault(task.model, RateMeter())]
        if kind is not None:
            meters.append(self._by_kind.setdefault((task.model, kind), RateMeter()))
        if change.chunks:
            num_tokens = sum(len(chunk.token_ids) for chunk in change.chunks)
            is_first = change.chunks[0].seq == 0
            cost = task.cost_per_token * num_tokens + (task.prompt_cost if is_first else 0)
            for meter in meters:
                meter.served(cost)
            if is_first and kind is not None and task.leased_at is not None:
                times = self._first_s.setdefault((task.model, kind), deque(maxlen=_MAX_FIRST))
                times.append(max(0.0, (task.first_chunk_at or 0.0) - task.leased_at))
        elif task.state is TaskState.SUCCEEDED:
            for meter in meters:
                if not task.num_chunks:
                    meter.served(task.charged_cost)
                meter.ended(task.charged_cost, task.estimated_cost)

    def _end_periods(self, now: float) -> None:
        due = [model for model, meter in self._meters.items() if meter.is_due(now)]
        due_places = [place for place, meter in self._by_kind.items() if meter.is_due(now)]
        if not due and not due_places:
            return
        nodes = _connected(self._cluster)
        self._look_at(nodes)
        for model in due:
            self._meters[model].end_period(now, *_slots(nodes, model))
        for model, kind in due_places:
            of_kind = [node for node in nodes if node.device_kind == kind]
            busy, capacity = _slots(of_kind, model)
            # While several tenants are served the last slots stand free, however much waits.
            self._by_kind[model, kind].end_period(now, busy, capacity - kept_slots(capacity))

    def _look_at(self, nodes: list[NodeView]) -> None:
        self._kinds = {node.runner_id: node.device_kind for node in nodes}


def _connected(cluster: Cluster) -> list[NodeView]:
    return [node for node in cluster.nodes() if node.connected]


def _slots(nodes: list[NodeView], model: str) -> tuple[int, int]:
    """Slots of the model's ready replicas that are busy, and all there are."""
    replicas = [replica for node in nodes for replica in node.replicas]
    ready = [r for r in replicas if r.model == model and r.state == READY]
    return sum(r.in_flight for r in ready), sum(r.capacity for r in ready)
