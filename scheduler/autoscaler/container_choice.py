"""Decides which provider gets the next container, and which loses one.

A container is ordered for replicas that fit nowhere, less what is on its way. It goes where an hour
of work costs least: the price, and for every loss that is to be expected in an hour that price
again, since what a lost container costs is about the hour that work waits, starts and is done
anew. A container that nobody needs goes after a while, the dearest first; one that is about to go
is kept rather than another ordered. While a provider takes one away it is not asked for more, for
some only know how many there should be.

Pure: orders, prices and shortages go in, what to do comes out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from scheduler.container import ContainerOrder, OrderState
from scheduler.providers.base import ProviderConfig


@dataclass(frozen=True, slots=True)
class Lack:
    """Replicas of a model that fit nowhere."""

    model: str
    num_missing: int
    #: Devices that one takes; 0: it runs on processors.
    num_devices: int


@dataclass(frozen=True, slots=True)
class Offer:
    """A provider as it stands."""

    config: ProviderConfig
    orders: tuple[ContainerOrder, ...]
    #: Of an hour of a container.
    price: float
    #: Losses to be expected of one in an hour.
    rate: float
    #: Why it cannot be asked for more now; empty: it can.
    closed: str = ""
    #: Containers it would let us have in all; None: it does not say.
    most: int | None = None
    #: Orders, by ordinal, whose runner has nothing to run, and since when.
    idle_since: Mapping[int, float] = field(default_factory=dict)
    #: Orders, by ordinal, whose runner is there and settled; the others are on their way.
    settled: frozenset[int] = frozenset()
    #: The only one that it can take away, by ordinal; None: any.
    last: int | None = None

    @property
    def cost(self) -> float:
        """What an hour of work is expected to cost."""
        return self.price * (1.0 + self.rate)

    @property
    def limit(self) -> int:
        """Containers it may have."""
        most = math.inf if self.most is None else self.most
        return int(min(self.config.max_containers, most))

    @property
    def num_there(self) -> int:
        return sum(order.is_there for order in self.orders)

    @property
    def num_staying(self) -> int:
        return sum(order.stays and order.state is not OrderState.LEAVING for order in self.orders)


@dataclass(frozen=True, slots=True)
class Choice:
    """What to do."""

    #: Providers that get a container, once for each.
    ordered: tuple[tuple[str, str], ...] = ()
    #: Orders that were to go and stay now.
    kept: tuple[ContainerOrder, ...] = ()
    #: Orders that are to go, and why.
    leaving: tuple[tuple[ContainerOrder, str], ...] = ()
    #: Why more are wanted than can be had, by model.
    shortages: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Room:
    """What a container on its way still has room for."""

    config: ProviderConfig
    num_devices: int
    num_replicas: float

    def take(self, lack: Lack) -> bool:
        """Whether a replica fits; then it is in."""
        if not may_run(self.config, lack) or self.num_replicas < 1:
            return False
        if self.num_devices < lack.num_devices:
            return False
        self.num_devices -= lack.num_devices
        self.num_replicas -= 1
        return True


def replicas_held(config: ProviderConfig) -> int | None:
    """Replicas that are placed in a container; None: as many as its devices suffice for."""
    if config.replicas_per_container is None and not config.num_devices:
        return 1
    return config.replicas_per_container


def may_run(config: ProviderConfig, lack: Lack) -> bool:
    """Whether a container of the provider can hold a replica at all."""
    is_allowed = config.models is None or lack.model in config.models
    return is_allowed and config.num_devices >= lack.num_devices


def choose(offers: Sequence[Offer], lacks: Iterable[Lack], now: float) -> Choice:
    """What to order, keep and let go."""
    draft = _Draft({offer.config.name: offer for offer in offers})
    for offer in offers:
        draft.fill_up(offer.config.name)
    wanting = [lack for lack in lacks if lack.num_missing > 0]
    for lack in sorted(wanting, key=lambda lack: (-lack.num_devices, lack.model)):
        draft.satisfy(lack)
    leaving = [] if wanting else _idle(draft.offers.values(), now)
    leaving += _surplus(draft.offers.values())
    return Choice(tuple(draft.ordered), tuple(draft.kept), tuple(leaving), draft.shortages)


class _Draft:
    """A choice that is being made."""

    def __init__(self, offers: dict[str, Offer]) -> None:
        self.offers = offers
        self.ordered: list[tuple[str, str]] = []
        self.kept: list[ContainerOrder] = []
        self.shortages: dict[str, str] = {}
        self._rooms = [
            _room(offer.config)
            for offer in offers.values()
            for order in offer.orders
            if order.state in (OrderState.ORDERED, OrderState.UP)
            and order.stalled_at is None
            and order.ordinal not in offer.settled
        ]

    def fill_up(self, name: str) -> None:
        """Order up to the least number of a provider."""
        config = self.offers[name].config
        while self.offers[name].num_staying < config.min_containers:
            if not self._order(name, f"at least {config.min_containers} are kept"):
                return

    def satisfy(self, lack: Lack) -> None:
        """Find room for every replica that is missing."""
        for _ in range(lack.num_missing):
            if any(room.take(lack) for room in self._rooms):
                continue
            fit = [offer for offer in self.offers.values() if may_run(offer.config, lack)]
            if not fit:
                self.shortages[lack.model] = "no provider may run it or has enough devices for it"
                return
            fit.sort(key=lambda offer: _dearness(offer, lack))
            reason = f"a replica of {lack.model} fits nowhere"
            if not any(self._keep(offer.config.name, lack) for offer in fit) and not any(
                self._order(offer.config.name, reason, lack) for offer in fit
            ):
                told = "; ".join(f"{o.config.name}: {_why_not(o)}" for o in fit)
                self.shortages[lack.model] = told
                return

    def _keep(self, name: str, lack: Lack) -> bool:
        """Keep a container that was to go; whether there was one."""
        offer = self.offers[name]
        for order in offer.orders:
            if order.state is OrderState.LEAVING:
                self.kept.append(order)
                others = tuple(other for other in offer.orders if other is not order)
                self.offers[name] = replace(offer, orders=others)
                self._add_room(offer.config, lack)
                return True
        return False

    def _order(self, name: str, reason: str, lack: Lack | None = None) -> bool:
        """Order one more container; whether the provider may have it."""
        offer = self.offers[name]
        if _why_not(offer):
            return False
        self.ordered.append((name, reason))
        new = ContainerOrder(name, -1, 0, OrderState.ORDERED)
        self.offers[name] = replace(offer, orders=(*offer.orders, new))
        self._add_room(offer.config, lack)
        return True

    def _add_room(self, config: ProviderConfig, lack: Lack | None) -> None:
        room = _room(config)
        if lack is not None:
            room.take(lack)
        self._rooms.append(room)


def _room(config: ProviderConfig) -> _Room:
    held = replicas_held(config)
    return _Room(config, config.num_devices, math.inf if held is None else held)


def _dearness(offer: Offer, lack: Lack) -> tuple[float, float, str]:
    """Sorts whom to order from first, by the cost of one replica."""
    room, count = _room(offer.config), 0
    while count < lack.num_missing and room.take(lack):
        count += 1
    return offer.cost / max(1, count), offer.rate, offer.config.name


def _why_not(offer: Offer) -> str:
    """Why a provider is not asked for one more; empty: it is."""
    if offer.closed:
        return offer.closed
    if offer.num_there >= offer.limit:
        return f"has the {offer.limit} containers it may have"
    if any(order.state is OrderState.REMOVING for order in offer.orders):
        return "is taking one away"
    return ""


def _idle(offers: Iterable[Offer], now: float) -> list[tuple[ContainerOrder, str]]:
    """Containers that nobody has needed for long enough; of each provider one at a time."""
    found = []
    for offer in sorted(offers, key=lambda offer: (-offer.cost, offer.config.name)):
        if offer.closed or offer.num_staying <= offer.config.min_containers:
            continue
        since = {
            order.ordinal: offer.idle_since[order.ordinal]
            for order in offer.orders
            if order.state is OrderState.UP and order.ordinal in offer.idle_since
        }
        if offer.last is not None:
            since = {n: at for n, at in since.items() if n == offer.last}
        ripe = [n for n, at in since.items() if now - at >= offer.config.idle_s]
        if ripe:
            victim = max(ripe)
            reason = f"nobody has needed it for {now - since[victim]:.0f} s"
            found.append((_of(offer, victim), reason))
    return found


def _surplus(offers: Iterable[Offer]) -> list[tuple[ContainerOrder, str]]:
    """Containers beyond what a provider may have: those that are idle first, then the newest."""
    found = []
    for offer in offers:
        staying = [o for o in offer.orders if o.ordinal >= 0 and o.state is OrderState.UP]
        excess = offer.num_staying - offer.limit
        staying.sort(
            key=lambda o: (o.ordinal != offer.last, o.ordinal not in offer.idle_since, -o.ordinal)
        )
        reason = f"{offer.config.name} may have {offer.limit}"
        found += [(order, reason) for order in staying[: max(0, excess)]]
    return found


def _of(offer: Offer, ordinal: int) -> ContainerOrder:
    return next(order for order in offer.orders if order.ordinal == ordinal)
