"""Collects what explains a task, and measures how fast each model is served.

The store says what waits and what runs, the cluster which replicas are ready, and the ledger tells
of every piece of work that is written down. What other control planes serve on the same store is
not measured here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from scheduler import moves
from scheduler.cluster_view import READY, Cluster, ReplicaView
from scheduler.explanation import (
    WAITING,
    Explanation,
    Facts,
    explain_other,
    explain_waiting,
)
from scheduler.fair_queue import FairQueue
from scheduler.ledger import Ledger
from scheduler.moves import Change, Rules
from scheduler.service_rate import Rate, RateMeter
from scheduler.stores.base import Transaction
from scheduler.task import TaskState


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the store does not know."""

    now: float
    replicas: Mapping[str, list[ReplicaView]]
    rates: Mapping[str, Rate | None]
    num_replicas: Mapping[str, int]


class Explainer:
    """Explains tasks."""

    def __init__(
        self, ledger: Ledger, rules: Rules, cluster: Cluster, num_replicas: Mapping[str, int]
    ) -> None:
        """``num_replicas``: how many each model should have where no operator has said so."""
        self._ledger, self._rules, self._cluster = ledger, rules, cluster
        self._num_replicas = num_replicas
        self._meters: dict[str, RateMeter] = {}
        # One at a time: explanations are read by people, and must not keep answers waiting.
        self._one_at_a_time = asyncio.Semaphore(1)
        ledger.on_changes(self._note)

    def __repr__(self) -> str:
        return f"<Explainer models={len(self._meters)}>"

    async def explain(self, task_id: str, tenant: str | None = None) -> Explanation:
        """Raises TaskNotFound, also when ``tenant`` is given and is not the owner."""
        async with self._one_at_a_time:
            now = self._ledger.clock.now()
            self._end_periods(now)
            seen = self._seen(now)
            return await self._ledger.store.read(
                lambda tx: _explain(tx, self._rules.queue, task_id, tenant, seen)
            )

    def _seen(self, now: float) -> _Seen:
        """What is not in the store. The query runs in another thread, so it is taken here."""
        replicas: dict[str, list[ReplicaView]] = {}
        for node in self._cluster.nodes():
            for replica in node.replicas if node.connected else ():
                replicas.setdefault(replica.model, []).append(replica)
        rates = {model: meter.rate(now) for model, meter in self._meters.items()}
        return _Seen(now, replicas, rates, self._num_replicas)

    # -- measuring

    def _note(self, changes: tuple[Change, ...]) -> None:
        """Something is on disk: count what it says was served."""
        for change in changes:
            if change.chunks or change.task.state is TaskState.SUCCEEDED:
                self._count(change)
        self._end_periods(self._ledger.clock.now())

    def _count(self, change: Change) -> None:
        task = change.task
        meter = self._meters.setdefault(task.model, RateMeter())
        if change.chunks:
            num_tokens = sum(len(chunk.token_ids) for chunk in change.chunks)
            is_first = change.chunks[0].seq == 0
            meter.served(task.cost_per_token * num_tokens + (task.prompt_cost if is_first else 0))
        elif task.state is TaskState.SUCCEEDED:
            if not task.num_chunks:
                meter.served(task.charged_cost)
            meter.ended(task.charged_cost, task.estimated_cost)

    def _end_periods(self, now: float) -> None:
        due = [model for model, meter in self._meters.items() if meter.is_due(now)]
        if not due:
            return
        for model in due:
            nodes = [node for node in self._cluster.nodes() if node.connected]
            replicas = [r for node in nodes for r in node.replicas]
            ready = [r for r in replicas if r.model == model and r.state == READY]
            busy = sum(replica.in_flight for replica in ready)
            self._meters[model].end_period(now, busy, sum(replica.capacity for replica in ready))


def _explain(
    tx: Transaction, queue: FairQueue, task_id: str, tenant: str | None, seen: _Seen
) -> Explanation:
    task = moves.owned(tx, task_id, tenant)
    attempts = moves.attempts(tx, task)
    if task.state not in WAITING:
        return explain_other(task, attempts, seen.now)
    num_desired = tx.desired_replicas().get(task.model, seen.num_replicas.get(task.model, 0))
    facts = Facts(
        task=task,
        now=seen.now,
        outlook=queue.outlook(tx, task),
        tenant=tx.tenant(task.tenant),
        num_in_flight=sum(flow.num_leased for flow in tx.flows_of(task.tenant)),
        running=tx.leases_of(task.model),
        replicas=seen.replicas.get(task.model, []),
        num_desired=num_desired,
        rate=seen.rates.get(task.model),
        class_weights=tx.class_weights(),
    )
    return explain_waiting(facts, attempts)
