"""The cluster as runners report it, against what should run."""

from __future__ import annotations

from collections import defaultdict
from typing import Final

from scheduler.cluster_view import READY, NodeView, ReplicaView
from scheduler.drift import Finding
from scheduler.reconciliation.base import Check, Parts

#: Seconds after its runner's last word for which a node's registration is kept.
NODE_KEPT_S: Final = 24 * 3600.0
#: Seconds that what runs may differ from what should: runners were told, and carry it out.
_GRACE_S: Final = 30.0


class _Lasting(Check):
    """Looks for what is wrong for longer than it takes to be carried out."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        #: When each was first seen, in monotonic time.
        self._since: dict[str, float] = {}

    def _lasting(self, subjects: set[str]) -> set[str]:
        """Those of ``subjects`` that were there at every look for a while."""
        now = self._parts.clock.monotonic()
        self._since = {each: self._since.get(each, now) for each in subjects}
        return {each for each, since in self._since.items() if now - since >= _GRACE_S}


class StaleRegistrations(Check):
    """Runners that are on record and not there."""

    name = "stale_registrations"
    looks_at = "runners that say nothing on an open stream, or whose stream broke long ago"
    repair = "the stream is ended; a runner that stays away is forgotten with its replicas"
    every_s = 1.0

    async def look(self) -> list[Finding]:
        cluster, clock = self._parts.cluster, self._parts.clock
        await self._parts.nodes.forget(clock.now() - NODE_KEPT_S)
        silent = [
            Finding(f"runner {runner}", f"said nothing for {for_s:.1f} s")
            for runner, for_s in cluster.dismiss_silent().items()
        ]
        return silent + [
            Finding(f"runner {runner}", "went away and did not come back")
            for runner in cluster.forget_lost()
        ]


class DevicesCountedTwice(Check):
    """Devices that two hold, or two count as theirs."""

    name = "devices_counted_twice"
    looks_at = "devices of replicas on a machine, and runners that count the same machine's devices"
    repair = "the sidecar gives each device to one replica; two runners of a machine are reported"
    every_s = 10.0

    async def look(self) -> list[Finding]:
        nodes = [node for node in self._parts.cluster.nodes() if node.connected]
        return [*self._shared_devices(nodes), *self._shared_machines(nodes)]

    def _shared_devices(self, nodes: list[NodeView]) -> list[Finding]:
        found: list[Finding] = []
        plan = self._parts.plan().replicas
        for node in nodes:
            holders: dict[int, list[str]] = defaultdict(list)
            for replica in node.replicas:
                for device in replica.device_ids:
                    holders[device].append(replica.name)
            planned = {placed.name: placed.device_ids for placed in plan.get(node.runner_id, ())}
            for device, names in holders.items():
                if len(names) < 2:
                    continue
                stay = [name for name in names if device in planned.get(name, ())]
                found.append(
                    Finding(
                        f"device {device} of runner {node.runner_id}",
                        f"is held by {', '.join(names)}",
                        is_repaired=len(stay) < 2,
                    )
                )
        return found

    def _shared_machines(self, nodes: list[NodeView]) -> list[Finding]:
        runners: dict[str, list[str]] = defaultdict(list)
        for node in nodes:
            if node.num_devices:
                runners[node.node].append(node.runner_id)
        return [
            Finding(
                f"node {name}",
                f"its devices are counted by the runners {', '.join(ids)}; give each a PLAIT_NODE",
                is_repaired=False,
            )
            for name, ids in runners.items()
            if len(ids) > 1
        ]


class WorkersNobodyAskedFor(_Lasting):
    """Replicas that run and should not."""

    name = "workers_nobody_asked_for"
    looks_at = "replicas that runners report and the plan does not have, for half a minute"
    repair = "the runner is told again what it should run; it drains and removes the rest"
    every_s = 5.0

    async def look(self) -> list[Finding]:
        plan = self._parts.plan().replicas
        unasked: dict[str, str] = {}
        for node in self._parts.cluster.nodes():
            if not node.connected or node.runner_id not in plan:
                continue
            planned = {placed.name for placed in plan[node.runner_id]}
            for replica in node.replicas:
                # One that drains has work in flight, and goes when that has ended.
                if replica.name not in planned and not replica.in_flight:
                    unasked[f"replica {replica.name} of runner {node.runner_id}"] = node.runner_id
        found = sorted(self._lasting(set(unasked)))
        for runner in {unasked[subject] for subject in found}:
            self._parts.cluster.want_again(runner)
        return [Finding(subject, "runs, and nobody asked for it") for subject in found]


class ReplicasShort(_Lasting):
    """Models with fewer replicas than they should have."""

    name = "replicas_short"
    looks_at = "replicas of the plan not ready for half a minute, and what could not be placed"
    repair = "the runner is told again; why a replica does not come up is reported"
    every_s = 5.0

    async def look(self) -> list[Finding]:
        plan = self._parts.plan()
        nodes = {node.runner_id: node for node in self._parts.cluster.nodes() if node.connected}
        missing: dict[str, tuple[str, str]] = {}
        for runner, placed in plan.replicas.items():
            there = {r.name: r for r in nodes[runner].replicas} if runner in nodes else {}
            for each in placed:
                replica = there.get(each.name)
                if replica is None or replica.state != READY:
                    subject = f"replica {each.name} of runner {runner}"
                    missing[subject] = runner, _why(runner in nodes, replica)
        lasting = self._lasting(set(missing))
        for runner in {missing[subject][0] for subject in lasting} & nodes.keys():
            self._parts.cluster.want_again(runner)
        short = [Finding(f"model {m}", why, False) for m, why in sorted(plan.shortages.items())]
        return short + [Finding(each, missing[each][1], False) for each in sorted(lasting)]


def _why(is_connected: bool, replica: ReplicaView | None) -> str:
    if not is_connected:
        return "its runner is away"
    if replica is None:
        return "its runner does not show it"
    return f"is {replica.state}" + (f": {replica.detail}" if replica.detail else "")
