"""Decides what has become of the containers that were ordered.

What was ordered is held against what the provider lists and which runners are there. A listing may
be a little old, so a container that it lacks is lost only if its runner is gone as well; and a
runner may be cut off for a while, so a container that runs without one has stalled, and is given up
only after the time that another would take to start.

Pure: orders, a listing and who is there go in; orders, and events for the ledger, come out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from scheduler.container import ContainerOrder, Event, OrderState
from scheduler.providers.base import Container, ContainerState, ProviderConfig
from scheduler.records import changed

#: Seconds that a runner may be away before its container has stalled.
STALL_S: Final = 30.0
#: Seconds that a provider has to take a container away.
REMOVE_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of a provider's containers beside the orders."""

    now: float
    #: As the provider listed them a moment ago.
    listing: Sequence[Container]
    #: Containers whose runner is connected.
    connected: frozenset[str]
    #: Since when a runner that was there is away, by container; as far as this process saw it.
    away_since: Mapping[str, float]
    #: When this process began to look.
    began_at: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What has become of a provider's orders."""

    orders: tuple[ContainerOrder, ...]
    #: With the class of the container they are about.
    events: tuple[tuple[Event, ContainerOrder], ...] = ()
    #: Containers that were taken for orders of ours whose record is gone.
    adopted: tuple[ContainerOrder, ...] = ()
    #: Containers that are nobody's: of an older generation, or more than there may be.
    unknown: tuple[Container, ...] = ()


def judge(
    config: ProviderConfig, replaces_lost: bool, orders: Sequence[ContainerOrder], seen: Seen
) -> Verdict:
    """What has become of every order of a provider.

    ``replaces_lost``: whether the provider itself starts another in the place of one it lost.
    """
    by_id = {container.id: container for container in seen.listing}
    after: dict[int, ContainerOrder] = {}
    events: list[tuple[Event, ContainerOrder]] = []
    for order, container in _match(orders, seen.listing):
        judged, event = _judge(config, replaces_lost, order, container, seen)
        after[order.ordinal] = judged
        if event is not None:
            events.append((event, order))
    known = {order.container_id for order in after.values() if order.is_there}
    adopted, unknown = [], []
    for container in by_id.values():
        if container.id in known or container.state is ContainerState.STOPPING:
            continue
        ours = _adopt(config, container, after, seen)
        if ours is None:
            unknown.append(container)
        else:
            after[ours.ordinal] = ours
            adopted.append(ours)
    in_order = tuple(after[ordinal] for ordinal in sorted(after))
    return Verdict(in_order, tuple(events), tuple(adopted), tuple(unknown))


def _match(
    orders: Sequence[ContainerOrder], listing: Sequence[Container]
) -> list[tuple[ContainerOrder, Container | None]]:
    """Each order with its container: by its key, by the name it is known under, or, where the
    provider keeps no keys, any that is nobody's yet."""
    by_key = {container.key: container for container in listing if container.key is not None}
    by_id = {container.id: container for container in listing}
    taken = {order.container_id for order in orders if order.is_there}
    free = [c for c in listing if c.key is None and c.id not in taken]
    free = [c for c in free if c.state in (ContainerState.STARTING, ContainerState.RUNNING)]
    matched: list[tuple[ContainerOrder, Container | None]] = []
    for order in sorted(orders, key=lambda order: order.ordinal):
        found = by_key.get(order.key)
        if found is None and order.container_id is not None:
            found = by_id.get(order.container_id)
            # Where keys are kept, what is there under the name is another generation's.
            found = None if found is not None and found.key is not None else found
        if found is None and order.state is OrderState.ORDERED and free:
            found = free.pop(0)
        matched.append((order, found if order.is_there else None))
    return matched


def _judge(
    config: ProviderConfig,
    replaces_lost: bool,
    order: ContainerOrder,
    container: Container | None,
    seen: Seen,
) -> tuple[ContainerOrder, Event | None]:
    match order.state:
        case OrderState.GONE:
            return order, None
        case OrderState.REMOVING:
            return _judge_removing(order, container, seen), None
        case OrderState.ORDERED:
            return _judge_ordered(config, order, container, seen)
        case OrderState.UP | OrderState.LEAVING:
            return _judge_up(config, replaces_lost, order, container, seen)


def _judge_removing(
    order: ContainerOrder, container: Container | None, seen: Seen
) -> ContainerOrder:
    if container is None:
        return _gone(order, order.reason or "removed")
    is_here = container.state is ContainerState.RUNNING and container.id in seen.connected
    since = seen.now if order.leaving_at is None else order.leaving_at
    if is_here and seen.now - since >= REMOVE_S:
        # Some providers choose for themselves which one goes: then this one may as well work.
        return changed(order, state=OrderState.UP, leaving_at=None, reason="was not removed")
    return order


def _judge_ordered(
    config: ProviderConfig, order: ContainerOrder, container: Container | None, seen: Seen
) -> tuple[ContainerOrder, Event | None]:
    if container is None:
        # What was listed of it is no more, or was not yet: it is ordered again under its key.
        order = changed(order, container_id=None, incarnation="")
    else:
        order = _found(order, container)
        if container.id in seen.connected:
            return changed(order, state=OrderState.UP, up_at=seen.now, reason=""), None
        if container.state is ContainerState.FAILED:
            reason = f"did not start: {container.reason}"
            return _removing(order, seen.now, reason), Event.SLOW_START
    if seen.now - order.ordered_at < config.start_timeout_s:
        return order, None
    said = f": {container.reason}" if container is not None and container.reason else ""
    reason = f"its runner had not come after {config.start_timeout_s:g} s{said}"
    if container is None:
        return _gone(order, reason), Event.SLOW_START
    return _removing(order, seen.now, reason), Event.SLOW_START


def _judge_up(
    config: ProviderConfig,
    replaces_lost: bool,
    order: ContainerOrder,
    container: Container | None,
    seen: Seen,
) -> tuple[ContainerOrder, Event | None]:
    is_here = order.container_id in seen.connected
    if container is not None and container.state is ContainerState.FAILED:
        reason = f"lost: {container.reason}"
        return _removing(order, seen.now, reason), Event.LOSS
    is_another = container is not None and container.incarnation != order.incarnation
    if (container is None and not is_here) or is_another:
        if replaces_lost and order.state is OrderState.UP:
            again = changed(
                order,
                state=OrderState.ORDERED,
                container_id=container.id if container is not None else None,
                incarnation=container.incarnation if container is not None else "",
                ordered_at=seen.now,
                up_at=None,
                stalled_at=None,
                reason="lost; the provider starts another",
            )
            return again, Event.LOSS
        return _gone(order, "lost"), Event.LOSS
    if container is not None:
        order = _found(order, container)
    if is_here:
        return changed(order, stalled_at=None), None
    return _judge_away(config, order, seen)


def _judge_away(
    config: ProviderConfig, order: ContainerOrder, seen: Seen
) -> tuple[ContainerOrder, Event | None]:
    """One that runs while its runner is away."""
    since = seen.away_since.get(order.container_id or "", seen.began_at)
    if seen.now - since < STALL_S or seen.now - seen.began_at < STALL_S:
        return order, None
    if order.stalled_at is None:
        return changed(order, stalled_at=seen.now), Event.STALL
    if seen.now - order.stalled_at >= config.start_timeout_s:
        reason = f"its runner was away for {seen.now - since:.0f} s"
        return _removing(order, seen.now, reason), None
    return order, None


def _found(order: ContainerOrder, container: Container) -> ContainerOrder:
    return changed(
        order,
        container_id=container.id,
        incarnation=container.incarnation,
        node_class=container.node_class,
    )


def _removing(order: ContainerOrder, now: float, reason: str) -> ContainerOrder:
    return changed(order, state=OrderState.REMOVING, leaving_at=now, reason=reason)


def _gone(order: ContainerOrder, reason: str) -> ContainerOrder:
    return changed(
        order,
        state=OrderState.GONE,
        container_id=None,
        incarnation="",
        up_at=None,
        leaving_at=None,
        stalled_at=None,
        reason=reason,
    )


def _adopt(
    config: ProviderConfig,
    container: Container,
    orders: Mapping[int, ContainerOrder],
    seen: Seen,
) -> ContainerOrder | None:
    """An order for a container that was ordered once, or None when it cannot be ours."""
    if container.state is ContainerState.FAILED:
        return None
    if sum(order.is_there for order in orders.values()) >= config.max_containers:
        return None
    place = _place(config, container.key, orders)
    if place is None:
        return None
    ordinal, generation = place
    order = ContainerOrder(
        config.name, ordinal, generation, OrderState.ORDERED, ordered_at=seen.now, reason="adopted"
    )
    return _found(order, container)


def _place(
    config: ProviderConfig, key: str | None, orders: Mapping[int, ContainerOrder]
) -> tuple[int, int] | None:
    """The place and generation of a container that has no order."""
    if key is None:
        ordinal = next(n for n in range(len(orders) + 1) if n not in orders or _is_free(orders[n]))
        return ordinal, orders[ordinal].generation + 1 if ordinal in orders else 1
    parsed = re.fullmatch(rf"{re.escape(config.name)}-(\d+)-(\d+)", key)
    if parsed is None:
        return None
    ordinal, generation = int(parsed[1]), int(parsed[2])
    order = orders.get(ordinal)
    if order is not None and (order.is_there or order.generation > generation):
        return None
    return ordinal, generation


def _is_free(order: ContainerOrder) -> bool:
    return not order.is_there
