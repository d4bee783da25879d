"""Decides which replicas each node should run.

What runs stays where it is. A replica too many goes: first one that is on its way out already, then
one that is not ready, then the one in the dearest container, then the one with the least in flight,
then the highest index. Of the nodes that have enough devices free a new one goes to the one that
has most of the model's files, and of several to the one with the fewest of its model, under the
lowest index nobody uses. A replica that is on its way out holds its name and its devices until it
is gone, so no two workers ever share a device.

Pure: nodes as they were seen and counts as they are wanted go in, a plan comes out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from handlers.model_config import ModelConfig
from scheduler.cluster_view import READY, NodeView, Placed, ReplicaView
from scheduler.torchserve.archive import parse_replica_name, replica_name


@dataclass(frozen=True, slots=True)
class Trait:
    """What sets a node in a container apart from others."""

    #: Whether it is to go: nothing stays on it.
    is_leaving: bool = False
    #: Replicas it takes; None: as many as its devices suffice for.
    most_replicas: int | None = None
    #: The greater, the rather others are taken: what an hour of work there is expected to cost.
    rank: float = 0.0
    #: Models it may run; None: any.
    models: tuple[str, ...] | None = None


#: Of a node in no container.
_OWN = Trait()


@dataclass(frozen=True, slots=True)
class Plan:
    """What every node should run."""

    #: By runner id; every node seen has an entry.
    replicas: Mapping[str, tuple[Placed, ...]]
    #: Why fewer run than are wanted, by model.
    shortages: Mapping[str, str] = field(default_factory=dict)
    #: How many fewer, by model; models of which there are enough are left out.
    missing: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Node:
    view: NodeView
    present: dict[str, ReplicaView]
    #: Names of the last plan.
    planned: frozenset[str] = frozenset()
    wanted: dict[str, Placed] = field(default_factory=dict)
    taken: set[int] = field(default_factory=set)
    trait: Trait = _OWN

    def free(self, config: ModelConfig) -> list[int]:
        """Devices the model may use here that nobody holds."""
        allowed = range(self.view.num_devices) if config.device_ids is None else config.device_ids
        return [d for d in allowed if d < self.view.num_devices and d not in self.taken]

    def may_take(self, model: str) -> bool:
        """Whether one more replica of the model may be here, devices apart."""
        trait = self.trait
        is_allowed = trait.models is None or model in trait.models
        if trait.is_leaving or not is_allowed or not self.view.can_run(model):
            return False
        return trait.most_replicas is None or len(self.wanted) < trait.most_replicas


def place(
    desired: Mapping[str, int],
    configs: Mapping[str, ModelConfig],
    nodes: Sequence[NodeView],
    previous: Mapping[str, Sequence[Placed]] | None = None,
    traits: Mapping[str, Trait] | None = None,
) -> Plan:
    """The plan that brings every model to its desired number of replicas.

    ``previous`` is the last plan: a replica it has and a runner does not show yet is on its way.
    ``traits``: of nodes in containers, by runner.
    """
    cluster = [_seen(node, (previous or {}).get(node.runner_id, ())) for node in nodes]
    for each in cluster:
        each.trait = (traits or {}).get(each.view.runner_id, _OWN)
    shortages: dict[str, str] = {}
    missing: dict[str, int] = {}
    for model in sorted(desired):
        config = configs.get(model)
        if config is None:
            continue
        kept = _keep(config, desired[model], cluster)
        for number in range(kept, desired[model]):
            if not _add(config, cluster):
                shortages[model] = _shortage(config, cluster)
                missing[model] = desired[model] - number
                break
    replicas = {n.view.runner_id: tuple(n.wanted[x] for x in sorted(n.wanted)) for n in cluster}
    return Plan(replicas, shortages, missing)


def devices_needed(config: ModelConfig) -> int:
    """Devices one replica takes."""
    return config.num_stages if config.device_type == "gpu" else 0


def _seen(view: NodeView, previous: Iterable[Placed]) -> _Node:
    planned = {placed.name: placed for placed in previous}
    present = {
        name: ReplicaView(name, placed.model, "starting", 0, 0, placed.device_ids)
        for name, placed in planned.items()
    }
    for replica in view.replicas:
        # Before it is registered a replica shows no devices; the plan knows which it is to get.
        known = replica.device_ids or (
            planned[replica.name].device_ids if replica.name in planned else ()
        )
        present[replica.name] = ReplicaView(
            replica.name, replica.model, replica.state, replica.capacity, replica.in_flight, known
        )
    node = _Node(view, present, frozenset(planned))
    node.taken = {device for replica in present.values() for device in replica.device_ids}
    return node


def _keep(config: ModelConfig, count: int, cluster: Sequence[_Node]) -> int:
    """Keep up to ``count`` replicas of what is there; returns how many."""
    there = [
        (node, replica)
        for node in cluster
        for replica in node.present.values()
        if replica.model == config.name
    ]
    there.sort(key=lambda pair: _worth(*pair))
    kept = 0
    for node, replica in there:
        devices = _devices_of(config, node, replica)
        if kept < count and devices is not None and node.may_take(config.name):
            node.wanted[replica.name] = Placed(replica.name, config.name, devices)
            node.taken.update(devices)
            kept += 1
    return kept


def _worth(node: _Node, replica: ReplicaView) -> tuple[bool, bool, bool, float, int, int, str]:
    """Sorts what to keep first."""
    is_away, is_ready = not node.view.connected, replica.state == READY
    # Where there is a last plan, what it let go is on its way out and stays so.
    is_leaving = bool(node.planned) and replica.name not in node.planned
    place = (node.trait.rank, -replica.in_flight, _index(replica.name), node.view.runner_id)
    return is_away, is_leaving, not is_ready, *place


def _devices_of(config: ModelConfig, node: _Node, replica: ReplicaView) -> tuple[int, ...] | None:
    """The devices a replica has or, if it has none yet, gets; None when there are not enough."""
    needed = devices_needed(config)
    if len(replica.device_ids) == needed:
        return replica.device_ids
    if replica.device_ids:
        return None  # made for another configuration; it goes, and a right one comes
    free = node.free(config)
    return tuple(free[:needed]) if len(free) >= needed else None


def _add(config: ModelConfig, cluster: Sequence[_Node]) -> bool:
    """Add one replica to the best node; whether there is one."""
    needed = devices_needed(config)
    fit = [n for n in _candidates(config, cluster) if len(n.free(config)) >= needed]
    if not fit:
        return False
    node = min(fit, key=lambda n: _dearness(n, config))
    used = {name for each in cluster for name in (*each.present, *each.wanted)}
    index = 0
    while (name := replica_name(config.name, index)) in used:
        index += 1
    devices = tuple(node.free(config)[:needed])
    node.wanted[name] = Placed(name, config.name, devices)
    node.taken.update(devices)
    return True


def _dearness(node: _Node, config: ModelConfig) -> tuple[float, int, float, int, str]:
    """Sorts where to add a replica first; to fetch files takes longer than to share a machine."""
    missing = 1.0 - _held_ratio(config, node.view)
    count = sum(placed.model == config.name for placed in node.wanted.values())
    return missing, count, node.trait.rank, len(node.wanted), node.view.runner_id


def _held_ratio(config: ModelConfig, node: NodeView) -> float:
    """The share of a model's files that a node has; in tenths, so that a download that goes on
    does not outweigh everything else."""
    if not config.source.is_remote:
        return 1.0
    held = next((each for each in node.holdings if each.model == config.name), None)
    if held is None or not held.total_bytes:
        return 0.0
    return math.floor(10 * held.held_bytes / held.total_bytes) / 10


def _candidates(config: ModelConfig, cluster: Sequence[_Node]) -> list[_Node]:
    """Nodes that are there and may take a replica of the model, devices apart."""
    return [node for node in cluster if node.view.connected and node.may_take(config.name)]


def _shortage(config: ModelConfig, cluster: Sequence[_Node]) -> str:
    if not any(node.view.connected for node in cluster):
        return "no runner is connected"
    if not (candidates := _candidates(config, cluster)):
        return "every connected node is full, on its way out, or has no config of the model"
    needed = devices_needed(config)
    most = max(len(node.free(config)) for node in candidates)
    return f"a replica needs {needed} devices of one node; the most that are free is {most}"


def _index(name: str) -> int:
    parsed = parse_replica_name(name)
    return parsed[1] if parsed is not None else 0
