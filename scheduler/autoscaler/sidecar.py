"""Keeps every model at its number of replicas.

Every few seconds, and whenever a node or a replica changes, it looks at what is there and what is
wanted, has :mod:`scheduler.autoscaler.placement` decide, and tells each runner what it should run.
The runners carry it out. How many replicas are wanted says :mod:`scheduler.autoscaler.scaler`. Work
on a replica that goes may finish; after the model's ``drain_s`` it is parked to its journal.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import structlog

from handlers.model_config import ModelConfig
from scheduler.autoscaler.drains import Drains
from scheduler.autoscaler.placement import Placed, Plan, Trait, place
from scheduler.autoscaler.scaler import Scaler
from scheduler.clock import Clock
from scheduler.cluster_view import NodeView
from scheduler.errors import StoreUnavailable
from scheduler.rpc import plait_pb2 as pb

log = structlog.get_logger(__name__)


class Cluster(Protocol):
    """Whoever speaks with the runners."""

    def nodes(self) -> Sequence[NodeView]:
        """Every node known."""
        ...

    def want(self, runner_id: str, replicas: Sequence[pb.DesiredReplica]) -> None:
        """Have a runner run exactly these replicas."""
        ...

    def on_nodes_changed(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` when a node or a replica changes."""
        ...


class Sidecar:
    """Desired replicas, kept."""

    def __init__(
        self,
        configs: Mapping[str, ModelConfig],
        scaler: Scaler,
        cluster: Cluster,
        park: Callable[[str, str, str], Awaitable[object]],
        clock: Clock,
        *,
        reconcile_s: float = 2.0,
    ) -> None:
        """``park`` takes all work from a replica of a runner that has drained for too long; the
        third argument says why."""
        self._configs = configs
        self._scaler = scaler
        self._cluster = cluster
        self._drains = Drains(configs)
        self._park, self._clock = park, clock
        self._reconcile_s = reconcile_s
        self._plan = Plan({})
        self._traits: Callable[[], Mapping[str, Trait]] = dict
        self._wake = asyncio.Event()
        cluster.on_nodes_changed(self._wake.set)

    def __repr__(self) -> str:
        wanted = sum(len(replicas) for replicas in self._plan.replicas.values())
        return f"<Sidecar wanted={wanted} shortages={sorted(self._plan.shortages)}>"

    @property
    def plan(self) -> Plan:
        """What should run, as it was decided last."""
        return self._plan

    @property
    def missing(self) -> Mapping[str, int]:
        """Replicas that should run and have no room, by model: those of the plan, and those that
        the work asks for beyond it."""
        both = (self._plan.missing, self._scaler.lacking)
        models = {model for each in both for model, count in each.items() if count}
        return {model: max(each.get(model, 0) for each in both) for model in sorted(models)}

    def heed(self, traits: Callable[[], Mapping[str, Trait]]) -> None:
        """``traits`` tells what sets nodes in containers apart, by runner."""
        self._traits = traits

    def look_again(self) -> None:
        """Look now: an operator has changed a number, or somebody which nodes are to go."""
        self._wake.set()

    def has_queued(self, model: str) -> None:
        """A task of the model waits; if nobody is there to do it, somebody has to be started."""
        if self._scaler.wake(model):
            self._wake.set()

    async def run(self) -> None:
        """Look, decide and tell, until cancelled."""
        while True:
            try:
                await self._reconcile()
            except StoreUnavailable as error:
                log.warning("replicas_not_reconciled", error=str(error))
            # Not wait_for: on Python 3.11 it swallows a cancel that comes with the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._reconcile_s):
                    await self._wake.wait()
            self._wake.clear()

    async def _reconcile(self) -> None:
        nodes = self._cluster.nodes()
        traits = self._traits()
        desired = await self._scaler.desired(nodes, self._plan.replicas, traits)
        before, self._plan = (
            self._plan,
            place(desired, self._configs, nodes, self._plan.replicas, traits),
        )
        self._log_changes(before, desired)
        for node in nodes:
            if node.connected:
                self._cluster.want(node.runner_id, _messages(self._plan.replicas[node.runner_id]))
        now = self._clock.monotonic()
        for runner_id, replica, reason in self._drains.look(nodes, self._plan.replicas, now):
            log.warning("drain_ended", runner=runner_id, replica=replica, why=reason)
            await self._park(runner_id, replica, reason)

    def _log_changes(self, before: Plan, desired: Mapping[str, int]) -> None:
        for runner_id, replicas in self._plan.replicas.items():
            old = {placed.name: placed for placed in before.replicas.get(runner_id, ())}
            new = {placed.name: placed for placed in replicas}
            for name in sorted(old.keys() | new.keys()):
                if old.get(name) != new.get(name):
                    placed = new.get(name) or old[name]
                    log.info(
                        "replica_placed" if name in new else "replica_dropped",
                        replica=name,
                        runner=runner_id,
                        devices=list(placed.device_ids),
                        reason=f"{desired.get(placed.model, 0)} wanted of {placed.model}",
                    )
        for model, shortage in self._plan.shortages.items():
            if before.shortages.get(model) != shortage:
                log.warning("replicas_short", model=model, reason=shortage)


def _messages(replicas: Sequence[Placed]) -> list[pb.DesiredReplica]:
    return [
        pb.DesiredReplica(name=r.name, model=r.model, device_ids=r.device_ids) for r in replicas
    ]
