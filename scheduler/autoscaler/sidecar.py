"""Keeps every model at its number of replicas.

Every few seconds, and whenever a node or a replica changes, it looks at what is there and what is
wanted, has :mod:`scheduler.autoscaler.placement` decide, and has each runner told what it should
run. The runners carry it out. How many replicas are wanted says :mod:`scheduler.autoscaler.scaler`.
Work on a replica that goes may finish; after the model's ``drain_s`` it is parked to its journal.
Of several control planes one decides for all.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import structlog

from handlers.model_config import ModelConfig
from scheduler.autoscaler.drains import Drains
from scheduler.autoscaler.leader import Leader
from scheduler.autoscaler.placement import Plan, Trait, place
from scheduler.autoscaler.scaler import Scaler
from scheduler.clock import Clock
from scheduler.cluster_view import NodeView, Placed
from scheduler.errors import StoreUnavailable

log = structlog.get_logger(__name__)


class Cluster(Protocol):
    """Whoever knows the nodes."""

    def nodes(self) -> Sequence[NodeView]:
        """Every node known."""
        ...

    def placed(self) -> Mapping[str, Sequence[Placed]]:
        """What every runner is to run, as far as it was decided."""
        ...

    async def place(self, epoch: int, wanted: Mapping[str, Sequence[Placed]]) -> bool:
        """Have every runner run exactly these replicas; False when another decides by now."""
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
        leader: Leader,
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
        self._leader = leader
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
        epoch = await self._leader.lead()
        if epoch is None:
            self._plan = Plan({})
            self._scaler.forget()
            return
        nodes, before, traits = self._cluster.nodes(), self._cluster.placed(), self._traits()
        desired = await self._scaler.desired(nodes, before, traits)
        plan = place(desired, self._configs, nodes, before, traits)
        if not await self._cluster.place(epoch, plan.replicas):
            return
        self._log_changes(before, plan, desired)
        self._plan = plan
        now = self._clock.monotonic()
        for runner_id, replica, reason in self._drains.look(nodes, plan.replicas, now):
            log.warning("drain_ended", runner=runner_id, replica=replica, why=reason)
            await self._park(runner_id, replica, reason)

    def _log_changes(
        self, before: Mapping[str, Sequence[Placed]], plan: Plan, desired: Mapping[str, int]
    ) -> None:
        for runner_id, replicas in plan.replicas.items():
            old = {placed.name: placed for placed in before.get(runner_id, ())}
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
        for model, shortage in plan.shortages.items():
            if self._plan.shortages.get(model) != shortage:
                log.warning("replicas_short", model=model, reason=shortage)
