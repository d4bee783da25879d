"""Collects what explains a task.

The store says what waits and what runs, the cluster which replicas are ready, and the speedometer
how fast the model is served.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from handlers.model_config import ModelConfig
from scheduler import moves
from scheduler.cluster_view import Cluster, ReplicaView
from scheduler.explanation import (
    WAITING,
    Explanation,
    Facts,
    explain_other,
    explain_waiting,
)
from scheduler.fair_queue import FairQueue
from scheduler.ledger import Ledger
from scheduler.moves import Rules
from scheduler.scaling import Wishes, warm_up
from scheduler.service_rate import Rate
from scheduler.speedometer import Speedometer
from scheduler.stores.base import Transaction

#: Decisions among which the last start of a replica is looked for.
_DECISIONS: Final = 10


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the store does not know."""

    now: float
    replicas: Mapping[str, list[ReplicaView]]
    rates: Mapping[str, Rate | None]
    configs: Mapping[str, ModelConfig]


class Explainer:
    """Explains tasks."""

    def __init__(
        self,
        ledger: Ledger,
        rules: Rules,
        cluster: Cluster,
        configs: Mapping[str, ModelConfig],
        speedometer: Speedometer,
    ) -> None:
        self._ledger, self._rules, self._cluster = ledger, rules, cluster
        self._configs, self._speedometer = configs, speedometer
        # One at a time: explanations are read by people, and must not keep answers waiting.
        self._one_at_a_time = asyncio.Semaphore(1)

    def __repr__(self) -> str:
        return f"<Explainer models={len(self._configs)}>"

    async def explain(self, task_id: str, tenant: str | None = None) -> Explanation:
        """Raises TaskNotFound, also when ``tenant`` is given and is not the owner."""
        async with self._one_at_a_time:
            now = self._ledger.clock.now()
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
        return _Seen(now, replicas, self._speedometer.rates(now), self._configs)


def _explain(
    tx: Transaction, queue: FairQueue, task_id: str, tenant: str | None, seen: _Seen
) -> Explanation:
    task = moves.owned(tx, task_id, tenant)
    attempts = moves.attempts(tx, task)
    if task.state not in WAITING:
        return explain_other(task, attempts, seen.now)
    config = seen.configs.get(task.model)
    wishes = Wishes(tx.desired_replicas(), tx.scaled_replicas())
    num_desired = 0 if config is None else wishes.of(config)
    num_slots = 0 if config is None else num_desired * config.max_batch
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
        warm_up=warm_up(
            tx.measures(task.model), tx.scale_decisions(task.model, _DECISIONS), num_slots
        ),
    )
    return explain_waiting(facts, attempts)
