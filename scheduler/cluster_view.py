"""What the cluster looks like at a moment, as values.

The dispatcher knows which runners are connected and what their replicas report; the gateway shows
it to clients and decides by it whether the service is ready. These records are what passes between
the two, so that neither imports the other. They say nothing about what an operator wants: desired
counts come from the task book and the model's config.
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
class NodeView:
    """One machine with its runner."""

    node: str
    runner_id: str
    #: Whether its stream to this control plane is open.
    connected: bool
    num_devices: int
    replicas: tuple[ReplicaView, ...] = ()
    #: What its devices are, such as "cpu" or "NVIDIA H100 80GB HBM3"; empty when it did not say.
    device_kind: str = ""
    #: Who rents us the container it is in, and what the provider calls that; empty: nobody.
    provider: str = ""
    container: str = ""
    #: Seconds that its machine's clock is ahead of the store's; None: it did not say.
    clock_skew_s: float | None = None
    #: Of the models whose files have to be fetched; others need none.
    holdings: tuple[HoldingView, ...] = ()


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
