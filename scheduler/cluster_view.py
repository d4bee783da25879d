"""What the cluster looks like at a moment, as values.

The dispatcher knows which runners are connected to it and what their replicas report, the registry
which are connected to any control plane; the gateway shows it to clients and decides by it whether
the service is ready. These records are what passes between them, so that none imports another. They
say nothing about what an operator wants: desired counts come from the store and the model's config.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

#: Of a model's slots one in so many is kept for those who come; of fewer one, for part of the time.
SLOTS_PER_KEPT: Final = 32
#: ``ReplicaView.state`` of a replica that takes work.
READY: Final = "ready"


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """One complete copy of a model, as its runner last reported it."""

    #: TorchServe's name for it, such as ``demo__r0``.
    name: str
    model: str
    #: "unknown", "starting", "ready", "draining" or "failed"; only "ready" takes work.
    state: str
    #: Tasks it works on at once.
    capacity: int
    #: Tasks leased to it.
    in_flight: int
    device_ids: tuple[int, ...] = ()
    #: Why it is not ready, for a person; empty when there is nothing to say.
    detail: str = ""
    #: What its engine tells of itself: stages, plan, faults, keys and values; None: nothing.
    engine: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class DeviceView:
    """One accelerator of a node, as its runner last reported it."""

    index: int
    #: What it is, such as a product name.
    kind: str
    #: Part of the time in which it was busy, from 0 to 1; None: it does not tell.
    busy_ratio: float | None = None
    memory_used_bytes: int = 0
    memory_total_bytes: int = 0


@dataclass(frozen=True, slots=True)
class HoldingView:
    """What a node has of a model's files, of one that has to be fetched."""

    model: str
    #: "absent", "fetching", "held" or "failed".
    state: str
    held_bytes: int
    #: 0: not known yet.
    total_bytes: int
    bytes_per_s: float = 0.0
    #: For a person; empty when there is nothing to say.
    detail: str = ""


@dataclass(frozen=True, slots=True)
class TorchServeView:
    """A node's TorchServe, as its runner sees it."""

    #: "unknown", "starting" (has not answered since it was started), "ready" (answers), "gone".
    state: str = "unknown"
    #: Times it was started again since the runner began.
    num_restarts: int = 0
    #: What it, or the lack of it, said last; empty when it answers.
    detail: str = ""


@dataclass(frozen=True, slots=True)
class NodeState:
    """How a node is doing, as its runner last reported it."""

    devices: tuple[DeviceView, ...] = ()
    #: Use of all the machine's processors, from 0 to 1.
    cpu_ratio: float = 0.0
    #: Of the machine's memory; both are 0 when the runner did not say.
    memory_used_bytes: int = 0
    memory_total_bytes: int = 0
    torchserve: TorchServeView = TorchServeView()
    #: Leases the runner works on.
    num_active: int = 0


@dataclass(frozen=True, slots=True)
class NodeView:
    """One machine with its runner."""

    node: str
    runner_id: str
    #: Whether its stream to a control plane is open.
    connected: bool
    num_devices: int
    replicas: tuple[ReplicaView, ...] = ()
    #: What its devices are, such as "cpu" or "NVIDIA H100 80GB HBM3"; empty when it did not say.
    device_kind: str = ""
    #: Seconds that its machine's clock is ahead of the store's; None: it did not say.
    clock_skew_s: float | None = None
    #: The machine's own name for itself.
    host: str = ""
    #: Who rents us the container it is in, and what the provider calls that; empty: nobody.
    provider: str = ""
    container: str = ""
    #: Version of Plait it is; empty when it did not say.
    version: str = ""
    #: Models it has a config of; None: it did not say.
    models: tuple[str, ...] | None = None
    state: NodeState = NodeState()
    #: Of the models whose files have to be fetched; others need none.
    holdings: tuple[HoldingView, ...] = ()
    #: Grows with each stream that the runner opens, at any control plane.
    fence: int = 0
    #: The control plane that has its stream, or had it last.
    control_plane: str = ""
    #: When that was opened, and when the runner last said something; seconds since the epoch.
    connected_at: float = 0.0
    heard_at: float = 0.0

    def can_run(self, model: str) -> bool:
        """Whether it has a config of the model."""
        return self.models is None or model in self.models


@dataclass(frozen=True, slots=True)
class Placed:
    """A replica that should run, and the devices it gets."""

    name: str
    model: str
    device_ids: tuple[int, ...] = ()


class Cluster(Protocol):
    """Whoever knows the runners."""

    def nodes(self) -> Sequence[NodeView]:
        """Every node known, those that lost their connection included; cheap, reads memory."""
        ...


def kept_slots(num_slots: int) -> int:
    """Slots of a model that a flow does not get that holds half of all, while several tenants are
    served; see ``scheduler/dispatcher/headroom.py``."""
    return max(0, min(-(-num_slots // SLOTS_PER_KEPT), num_slots - 1))


def most_leased(num_slots: int) -> int:
    """Tasks in flight from which on a flow does not get them."""
    return max(1, num_slots // 2)
