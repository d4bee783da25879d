"""Containers as they were ordered from providers, and how much providers can be relied on.

An order is a place, numbered from 0 within its provider, that is filled again and again: each time
under a greater generation, and provider, place and generation are the key that makes a repeated
order one container.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Protocol

from scheduler.records import Record, changed

#: Seconds after which what was noted of a provider counts half.
HALF_LIFE_S: Final = 12 * 3600.0
#: What is assumed of a provider that was never seen: so many losses in so many hours.
_PRIOR_LOSSES: Final = 0.05
_PRIOR_HOURS: Final = 1.0
#: What an event counts, in losses: a stall is mostly waited out, a slow start costs no work.
_STALL: Final = 0.5
_SLOW_START: Final = 0.25
#: Losses an hour of a container from which on its provider is flaky, and up to which it is trusted.
FLAKY_RATE: Final = 0.2
TRUSTED_RATE: Final = 0.02


class OrderState(Enum):
    """Where an order is in its life."""

    #: Asked of the provider; its runner has not connected yet.
    ORDERED = "ordered"
    #: Its runner is there, or was and may come back.
    UP = "up"
    #: It is to go and finishes its work.
    LEAVING = "leaving"
    #: The provider was told to take it away.
    REMOVING = "removing"
    #: There is none; the place is free for the next generation.
    GONE = "gone"


class ContainerOrder(Record, frozen=True):
    """One place of a provider, and what fills it."""

    #: Name of a file in the folder of provider configs.
    provider: str
    #: From 0.
    ordinal: int
    #: Grows with each container that is ordered for the place.
    generation: int
    state: OrderState
    #: The provider's name for it; None: not seen yet.
    container_id: str | None = None
    #: Differs when another one runs under the same name.
    incarnation: str = ""
    #: What of its provider's it runs on; empty: nothing that the provider tells.
    node_class: str = ""
    #: Seconds since the epoch.
    ordered_at: float = 0.0
    #: When its runner connected first; None: it has not yet.
    up_at: float | None = None
    #: When it was decided that it goes; None: it stays.
    leaving_at: float | None = None
    #: When it was noted that its runner stays away although it runs; None: it does not.
    stalled_at: float | None = None
    #: Why it is in this state, for a person.
    reason: str = ""

    @property
    def key(self) -> str:
        """Two calls with this key are about the same container."""
        return f"{self.provider}-{self.ordinal}-{self.generation}"

    @property
    def is_there(self) -> bool:
        """Whether the place is filled or being filled."""
        return self.state is not OrderState.GONE

    @property
    def stays(self) -> bool:
        """Whether it counts among those the provider is to have."""
        return self.state not in (OrderState.REMOVING, OrderState.GONE)


class Event(Enum):
    """Something that speaks against a provider."""

    LOSS = "loss"
    STALL = "stall"
    SLOW_START = "slow_start"


class Flakiness(Record, frozen=True):
    """What was noted of a provider's containers of one class; everything fades with time."""

    provider: str
    #: Empty: those of which the provider tells no class.
    node_class: str
    #: Containers that were lost while their runner was up.
    losses: float = 0.0
    #: Containers that ran while their runner stayed away.
    stalls: float = 0.0
    #: Containers that took too long to come up, or never did.
    slow_starts: float = 0.0
    #: Hours that containers were up.
    hours: float = 0.0
    #: When that was so, in seconds since the epoch.
    noted_at: float = 0.0

    @property
    def rate(self) -> float:
        """Losses to be expected of a container in an hour."""
        weighed = self.losses + _STALL * self.stalls + _SLOW_START * self.slow_starts
        return (weighed + _PRIOR_LOSSES) / (self.hours + _PRIOR_HOURS)

    def at(self, now: float) -> Flakiness:
        """The same, faded until a moment; a clock that was set back fades nothing."""
        part = math.exp2(-max(0.0, now - self.noted_at) / HALF_LIFE_S)
        return changed(
            self,
            losses=self.losses * part,
            stalls=self.stalls * part,
            slow_starts=self.slow_starts * part,
            hours=self.hours * part,
            noted_at=max(now, self.noted_at),
        )

    def noted(self, event: Event) -> Flakiness:
        """The same, and one more event."""
        match event:
            case Event.LOSS:
                return changed(self, losses=self.losses + 1)
            case Event.STALL:
                return changed(self, stalls=self.stalls + 1)
            case Event.SLOW_START:
                return changed(self, slow_starts=self.slow_starts + 1)


class Reliance:
    """How much can be relied on the containers there are, as it was noted last; cheap to ask.

    The container keeper writes it, the dispatcher reads it. A container is named by its provider
    and by what that calls it; a node that is in none has no provider.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Flakiness] = {}
        self._classes: dict[tuple[str, str], str] = {}

    def __repr__(self) -> str:
        return f"<Reliance classes={len(self._known)}>"

    def learn(self, ledger: Iterable[Flakiness], orders: Iterable[ContainerOrder]) -> None:
        """Everything that is noted, in the place of what was known."""
        self._known = {(each.provider, each.node_class): each for each in ledger}
        self._classes = {
            (order.provider, order.container_id): order.node_class
            for order in orders
            if order.container_id is not None
        }

    def rate(self, provider: str, container: str) -> float | None:
        """Losses to be expected of it in an hour; None: it is nobody's container."""
        if not provider:
            return None
        node_class = self._classes.get((provider, container), "")
        known = self._known.get((provider, node_class))
        return (known or Flakiness(provider, node_class)).rate

    def is_flaky(self, provider: str, container: str) -> bool:
        """Whether work on it has to be expected to be lost."""
        rate = self.rate(provider, container)
        return rate is not None and rate >= FLAKY_RATE

    def trust(self, provider: str, container: str) -> float:
        """From 0, of one that is flaky or nobody's, to 1, of one that hardly ever loses anything;
        in between by the logarithm of its rate."""
        rate = self.rate(provider, container)
        if rate is None:
            return 0.0
        share = math.log(FLAKY_RATE / rate) / math.log(FLAKY_RATE / TRUSTED_RATE)
        return min(1.0, max(0.0, share))


@dataclass(frozen=True, slots=True)
class ProviderStatus:
    """A provider as it is shown."""

    name: str
    kind: str
    #: "ok", "paused" (it failed, and is left alone for a while) or "unseen" (no listing of late).
    state: str
    #: Why, for a person; empty when all is well.
    reason: str
    price_per_hour: float
    device_kind: str
    num_devices: int
    min_containers: int
    max_containers: int
    models: tuple[str, ...] | None
    labels: Mapping[str, str]
    removes_any: bool
    #: Containers that it is to have, and those whose runner is up.
    num_ordered: int
    num_up: int
    flakiness: tuple[Flakiness, ...] = ()


@dataclass(frozen=True, slots=True)
class ContainerStatus:
    """A container as it is shown."""

    order: ContainerOrder
    #: What its provider says of it; empty: it does not list it.
    provider_state: str
    provider_reason: str
    #: The runner in it, while it is connected.
    runner: str | None


@dataclass(frozen=True, slots=True)
class ContainersView:
    """All there is to show."""

    providers: Sequence[ProviderStatus] = ()
    containers: Sequence[ContainerStatus] = ()
    #: Containers that providers list and nobody ordered: provider and its name for it.
    unknown: Sequence[tuple[str, str]] = ()
    #: Why more are wanted than can be had, by model.
    shortages: Mapping[str, str] = field(default_factory=dict)


class Containers(Protocol):
    """Whoever keeps them."""

    def view(self) -> ContainersView:
        """As it was seen last; cheap, reads memory."""
        ...
