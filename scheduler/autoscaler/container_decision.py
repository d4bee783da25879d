"""Decides everything about containers at a moment: what became of them, which come, which go.

It joins :mod:`scheduler.autoscaler.container_orders` and
:mod:`scheduler.autoscaler.container_choice`, keeps the ledger of what speaks against providers, and
says how nodes in containers are to be treated when replicas are placed. A provider whose listing is
stale is left as it is.

Pure: what was seen and what is written down go in, what is to be written down comes out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from scheduler.autoscaler.container_choice import Choice, Lack, Offer, choose, replicas_held
from scheduler.autoscaler.container_orders import Seen, Verdict, judge
from scheduler.autoscaler.placement import Trait
from scheduler.cluster_view import NodeView
from scheduler.container import ContainerOrder, Event, Flakiness, OrderState
from scheduler.providers.base import Capabilities, Container, ProviderConfig
from scheduler.records import changed

#: Seconds after its runner came in which a container counts as on its way: what it is to run is
#: decided meanwhile.
_SETTLE_S: Final = 5.0
#: Seconds between two times that hours of containers are written down.
_HOURS_EVERY_S: Final = 60.0

#: A container, by provider and by what that calls it.
Name = tuple[str, str]
#: A place, by provider and ordinal.
Place = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Source:
    """A provider at a moment."""

    config: ProviderConfig
    capabilities: Capabilities
    #: None: not listed of late.
    listing: Sequence[Container] | None
    price: float
    most: int | None = None
    #: Why it cannot be asked for more now; empty: it can.
    closed: str = ""


@dataclass(frozen=True, slots=True)
class Situation:
    """What was seen."""

    now: float
    began_at: float
    sources: Mapping[str, Source]
    #: Nodes in containers.
    nodes: Mapping[Name, NodeView]
    lacks: Sequence[Lack] = ()
    away_since: Mapping[Name, float] = field(default_factory=dict)
    idle_since: Mapping[Name, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be written down, and to be told."""

    orders: tuple[ContainerOrder, ...]
    ledger: tuple[Flakiness, ...]
    unknown: tuple[tuple[str, Container], ...]
    shortages: Mapping[str, str]
    #: Log events with their fields.
    told: tuple[tuple[str, Mapping[str, Any]], ...] = ()


def decide(
    situation: Situation, orders: Sequence[ContainerOrder], ledger: Sequence[Flakiness]
) -> Decision:
    """What to do, from what is written down and what was seen."""
    return _Deciding(situation, orders, ledger).decide()


def traits(
    sources: Mapping[str, Source],
    orders: Sequence[ContainerOrder],
    ledger: Sequence[Flakiness],
    nodes: Mapping[Name, NodeView],
) -> dict[str, Trait]:
    """How nodes in containers are treated when replicas are placed, by runner."""
    by_name = {(o.provider, o.container_id): o for o in orders if o.is_there}
    found = {}
    for name, node in nodes.items():
        source, order = sources.get(name[0]), by_name.get(name)
        if source is None:
            continue
        held = replicas_held(source.config)
        if order is None:
            # Not seen yet, or lost; what it had is placed elsewhere once its runner is away.
            found[node.runner_id] = Trait(not node.connected, held, models=source.config.models)
            continue
        rank = source.price * (1.0 + _rate(ledger, order.provider, order.node_class))
        is_leaving = order.state in (OrderState.LEAVING, OrderState.REMOVING)
        # Where only the last can be taken away, work moves off the last.
        rank += 0.0 if source.capabilities.removes_any else 1e-6 * order.ordinal
        found[node.runner_id] = Trait(is_leaving, held, rank, source.config.models)
    return found


class _Deciding:
    def __init__(
        self, situation: Situation, orders: Sequence[ContainerOrder], ledger: Sequence[Flakiness]
    ) -> None:
        self._situation = situation
        self._before = {(order.provider, order.ordinal): order for order in orders}
        self._orders = dict(self._before)
        self._notes = {(note.provider, note.node_class): note for note in ledger}
        self._told: list[tuple[str, Mapping[str, Any]]] = []
        self._unknown: list[tuple[str, Container]] = []

    def decide(self) -> Decision:
        for source in self._situation.sources.values():
            if source.listing is not None:
                self._judge(source, source.listing)
        self._withdraw()
        self._remove_drained()
        choice = choose(self._offers(), self._situation.lacks, self._situation.now)
        self._carry_in(choice)
        self._count_hours()
        orders = tuple(self._orders[place] for place in sorted(self._orders))
        ledger = tuple(self._notes[key] for key in sorted(self._notes))
        unknown, told = tuple(self._unknown), tuple(self._told)
        return Decision(orders, ledger, unknown, choice.shortages, told)

    # -- what became of them

    def _judge(self, source: Source, listing: Sequence[Container]) -> None:
        name, situation = source.config.name, self._situation
        seen = Seen(
            situation.now,
            listing,
            frozenset(
                c for (p, c), node in situation.nodes.items() if p == name and node.connected
            ),
            {c: at for (p, c), at in situation.away_since.items() if p == name},
            situation.began_at,
        )
        verdict = judge(source.config, source.capabilities.replaces_lost, self._of(name), seen)
        self._orders |= {(name, order.ordinal): order for order in verdict.orders}
        self._unknown += [(name, container) for container in verdict.unknown]
        self._tell(verdict)

    def _tell(self, verdict: Verdict) -> None:
        for event, order in verdict.events:
            self._note(event, order)
            reason = self._orders[order.provider, order.ordinal].reason
            match event:
                case Event.LOSS:
                    self._say("container_lost", order, reason=reason)
                case Event.STALL:
                    self._say("container_stalled", order)
                case Event.SLOW_START:
                    self._say("container_slow", order, reason=reason)
        for order in verdict.adopted:
            self._say("container_adopted", order)
        for order in verdict.orders:
            before = self._before.get((order.provider, order.ordinal))
            if before is None or before.state is order.state:
                continue
            if before.state is OrderState.ORDERED and order.up_at is not None:
                self._say("container_up", order, after_s=round(order.up_at - order.ordered_at, 1))
            elif order.state is OrderState.GONE and before.state is OrderState.REMOVING:
                self._say("container_removed", before)

    def _note(self, event: Event, order: ContainerOrder) -> None:
        key = (order.provider, order.node_class)
        note = self._notes.get(key) or Flakiness(*key, noted_at=self._situation.now)
        self._notes[key] = note.at(self._situation.now).noted(event)

    def _count_hours(self) -> None:
        """Hours count for what is up; where nothing is, they only fade."""
        up: dict[tuple[str, str], int] = {}
        for order in self._orders.values():
            if order.state in (OrderState.UP, OrderState.LEAVING) and order.stalled_at is None:
                key = (order.provider, order.node_class)
                up[key] = up.get(key, 0) + 1
        for key, count in up.items():
            now = self._situation.now
            note = self._notes.get(key) or Flakiness(*key, noted_at=now)
            passed_s = now - note.noted_at
            if key not in self._notes or passed_s >= _HOURS_EVERY_S:
                # Nobody counted while no control plane ran: an hour at most is taken for seen.
                hours = count * min(max(0.0, passed_s), 3600.0) / 3600.0
                faded = note.at(now)
                self._notes[key] = changed(faded, hours=faded.hours + hours)

    # -- which come and go

    def _withdraw(self) -> None:
        """Take back orders that a provider does not carry out, so that others are asked. If one was
        carried out all the same, it is adopted when it is listed."""
        for place, order in self._orders.items():
            source = self._situation.sources.get(order.provider)
            if source is None or not source.closed or order.state is not OrderState.ORDERED:
                continue
            if order.container_id is None:
                self._orders[place] = changed(order, state=OrderState.GONE, reason=source.closed)
                self._say("container_withdrawn", order, reason=source.closed)

    def _remove_drained(self) -> None:
        now = self._situation.now
        for place, order in self._orders.items():
            source = self._situation.sources.get(order.provider)
            if source is None or order.state is not OrderState.LEAVING:
                continue
            node = self._node(order)
            is_empty = node is None or not node.connected or not node.replicas
            waited_s = 0.0 if order.leaving_at is None else now - order.leaving_at
            if is_empty or waited_s >= source.config.drain_timeout_s:
                self._orders[place] = changed(order, state=OrderState.REMOVING, leaving_at=now)
                self._say("container_drained", order, is_empty=is_empty, after_s=round(waited_s, 1))

    def _offers(self) -> list[Offer]:
        return [self._offer(source) for source in self._situation.sources.values()]

    def _offer(self, source: Source) -> Offer:
        name, now = source.config.name, self._situation.now
        orders = self._of(name)
        idle, settled = {}, set()
        for order in orders:
            node = self._node(order)
            if order.state is not OrderState.UP or node is None or not node.connected:
                continue
            if order.up_at is not None and now - order.up_at >= _SETTLE_S:
                settled.add(order.ordinal)
            since = self._situation.idle_since.get((name, order.container_id or ""))
            if since is not None:
                idle[order.ordinal] = since
        return Offer(
            source.config,
            tuple(orders),
            source.price,
            _rate(tuple(self._notes.values()), name, None),
            closed=source.closed or ("not listed of late" if source.listing is None else ""),
            most=source.most,
            idle_since=idle,
            settled=frozenset(settled),
            last=None if source.capabilities.removes_any else self._last(source),
        )

    def _last(self, source: Source) -> int:
        """The place of the container that the provider would take away; -1: of none."""
        listed = [container.id for container in source.listing or ()]
        for order in self._of(source.config.name):
            if listed and order.container_id == listed[-1]:
                return order.ordinal
        return -1

    def _carry_in(self, choice: Choice) -> None:
        now = self._situation.now
        for order in choice.kept:
            self._put(changed(order, state=OrderState.UP, leaving_at=None, reason=""))
            self._say("container_kept", order)
        for name, reason in choice.ordered:
            order = self._next(name, reason)
            self._put(order)
            self._say("container_ordered", order, reason=reason)
        for order, reason in choice.leaving:
            self._put(changed(order, state=OrderState.LEAVING, leaving_at=now, reason=reason))
            self._say("container_leaving", order, reason=reason)

    def _next(self, name: str, reason: str) -> ContainerOrder:
        """A new order in the first free place of a provider."""
        taken = {order.ordinal: order for order in self._of(name)}
        free = (n for n in range(len(taken) + 1) if n not in taken or not taken[n].is_there)
        ordinal = next(free)
        generation = taken[ordinal].generation + 1 if ordinal in taken else 1
        now = self._situation.now
        return ContainerOrder(
            name, ordinal, generation, OrderState.ORDERED, ordered_at=now, reason=reason
        )

    # -- what both need

    def _of(self, name: str) -> list[ContainerOrder]:
        return [self._orders[place] for place in sorted(self._orders) if place[0] == name]

    def _node(self, order: ContainerOrder) -> NodeView | None:
        return self._situation.nodes.get((order.provider, order.container_id or ""))

    def _put(self, order: ContainerOrder) -> None:
        self._orders[order.provider, order.ordinal] = order

    def _say(self, event: str, order: ContainerOrder, **fields: Any) -> None:
        about = {"provider": order.provider, "key": order.key, "container": order.container_id}
        self._told.append((event, {**about, **fields}))


def _rate(ledger: Sequence[Flakiness], provider: str, node_class: str | None) -> float:
    """Losses to be expected of a container in an hour, of one class or of all together."""
    known = [
        note
        for note in ledger
        if note.provider == provider and (node_class is None or note.node_class == node_class)
    ]
    blank = Flakiness(provider, node_class or "")
    return changed(
        blank,
        losses=sum(note.losses for note in known),
        stalls=sum(note.stalls for note in known),
        slow_starts=sum(note.slow_starts for note in known),
        hours=sum(note.hours for note in known),
    ).rate
