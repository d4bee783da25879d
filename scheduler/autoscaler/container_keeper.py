"""Keeps as many containers as the models lack, from the providers that there are.

It runs beside the sidecar. Every few seconds, and whenever a node comes or goes, it lists what the
providers have, has :mod:`scheduler.autoscaler.container_decision` decide, writes down what was
decided, and only then asks for it: whoever dies in between, the next look finds the order and asks
again under its key. Nothing here is on the way of a task; with every provider away, what runs runs
on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog

from handlers.model_config import ModelConfig
from scheduler.autoscaler.breaker import Breaker
from scheduler.autoscaler.container_choice import Lack
from scheduler.autoscaler.container_decision import (
    Decision,
    Name,
    Situation,
    Source,
    decide,
    traits,
)
from scheduler.autoscaler.placement import Trait, devices_needed
from scheduler.autoscaler.sidecar import Cluster, Sidecar
from scheduler.clock import Clock
from scheduler.cluster_view import NodeView
from scheduler.container import (
    ContainerOrder,
    ContainerStatus,
    ContainersView,
    OrderState,
    ProviderStatus,
    Reliance,
)
from scheduler.errors import StoreUnavailable
from scheduler.providers.base import Container, Provider, ProviderConfig, ProviderError, Terms
from scheduler.stores.base import Store, Transaction

log = structlog.get_logger(__name__)

#: Seconds between two listings however much happens.
_LEAST_S: Final = 0.5
#: Looks after which a listing is stale.
_STALE_LOOKS: Final = 3
#: Seconds after which a call that was made is made again while its effect is not to be seen.
_AGAIN_S: Final = 30.0
#: Seconds for which what a provider says of prices and quotas is kept.
_TERMS_S: Final = 600.0
#: Seconds that a container which nobody ordered is left alone.
UNKNOWN_GRACE_S: Final = 600.0


@dataclass(slots=True)
class _Kept:
    """A provider, and what is known of it."""

    config: ProviderConfig
    provider: Provider
    listing: Sequence[Container] = ()
    #: In monotonic time; None: never.
    listed_at: float | None = None
    terms: Terms = field(default_factory=Terms)
    terms_at: float | None = None
    #: Two, for one that lists well may still refuse every order.
    looks: Breaker = field(default_factory=Breaker)
    calls: Breaker = field(default_factory=Breaker)
    #: Calls that succeeded, by what they were about, and when.
    asked: dict[tuple[str, str], float] = field(default_factory=dict)

    def is_fresh(self, now: float) -> bool:
        since = self.listed_at
        return since is not None and now - since <= _STALE_LOOKS * self.config.look_s


class ContainerKeeper:
    """The containers of one Plait."""

    def __init__(
        self,
        providers: Sequence[tuple[ProviderConfig, Provider]],
        models: Mapping[str, ModelConfig],
        store: Store,
        cluster: Cluster,
        sidecar: Sidecar,
        reliance: Reliance,
        clock: Clock,
        *,
        lead: Callable[[], Awaitable[int | None]] | None = None,
    ) -> None:
        """``lead``: as :meth:`scheduler.autoscaler.leader.Leader.lead`; without it this control
        plane is the only one."""
        self._kept = {config.name: _Kept(config, provider) for config, provider in providers}
        self._models = models
        self._store, self._cluster, self._sidecar = store, cluster, sidecar
        self._reliance, self._clock, self._lead = reliance, clock, lead
        self._began_at = clock.now()
        self._away_since: dict[Name, float] = {}
        self._idle_since: dict[Name, float] = {}
        self._unknown_since: dict[Name, float] = {}
        self._decision = Decision((), (), (), {})
        self._wake = asyncio.Event()
        if self._kept:
            cluster.on_nodes_changed(self._wake.set)
            sidecar.heed(self.traits)

    def __repr__(self) -> str:
        there = sum(order.is_there for order in self._decision.orders)
        return f"<ContainerKeeper providers={len(self._kept)} containers={there}>"

    async def run(self) -> None:
        """Look, decide and ask, until cancelled."""
        if not self._kept:
            await asyncio.get_running_loop().create_future()
        every_s = min(kept.config.look_s for kept in self._kept.values())
        is_woken = True
        while True:
            try:
                await self.look(is_woken=is_woken)
            except StoreUnavailable as error:
                log.warning("store_refused", error=str(error))
            await asyncio.sleep(min(_LEAST_S, every_s))
            is_woken = False
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(every_s):
                    await self._wake.wait()
                    is_woken = True
            self._wake.clear()

    async def look(self, *, is_woken: bool = True) -> None:
        """List, decide, write down, ask. Raises StoreUnavailable."""
        if self._lead is not None and await self._lead() is None:
            await self._read()
            return
        await self._list(is_woken)
        situation = self._situation()
        self._decision = await self._store.run(lambda tx: _decided(tx, situation))
        for event, fields in self._decision.told:
            log.info(event, **fields)
        self._reliance.learn(self._decision.ledger, self._decision.orders)
        if self._decision.told:
            self._sidecar.look_again()
        await asyncio.gather(*(self._ask(kept) for kept in self._kept.values()))

    def traits(self) -> Mapping[str, Trait]:
        """How the nodes in containers are treated when replicas are placed, by runner."""
        now = self._clock.monotonic()
        sources = {name: self._source(kept, now) for name, kept in self._kept.items()}
        return traits(sources, self._decision.orders, self._decision.ledger, self._nodes())

    def view(self) -> ContainersView:
        """As it was seen last."""
        now, nodes = self._clock.monotonic(), self._nodes()
        orders = [order for order in self._decision.orders if order.is_there]
        return ContainersView(
            [self._provider_status(kept, now) for kept in self._kept.values()],
            [self._container_status(order, nodes) for order in orders],
            [(name, container.id) for name, container in self._decision.unknown],
            self._decision.shortages,
        )

    async def close(self) -> None:
        """Let go of the providers."""
        await asyncio.gather(
            *(kept.provider.close() for kept in self._kept.values()), return_exceptions=True
        )

    # -- what is seen

    async def _read(self) -> None:
        """What another control plane has decided. For how long something was seen says nothing any
        more: it begins anew when this one decides again."""
        self._began_at = self._clock.now()
        self._away_since, self._idle_since, self._unknown_since = {}, {}, {}
        orders, ledger = await self._store.read(
            lambda tx: (tuple(tx.container_orders()), tuple(tx.provider_ledger()))
        )
        self._decision = Decision(orders, ledger, (), {})
        self._reliance.learn(ledger, orders)

    async def _list(self, is_woken: bool) -> None:
        now = self._clock.monotonic()
        due = [
            kept
            for kept in self._kept.values()
            if kept.looks.may_ask(now)
            and (is_woken or kept.listed_at is None or now - kept.listed_at >= kept.config.look_s)
        ]
        await asyncio.gather(*(self._list_one(kept) for kept in due))

    async def _list_one(self, kept: _Kept) -> None:
        try:
            kept.listing = await kept.provider.containers()
            kept.listed_at = self._clock.monotonic()
            if kept.terms_at is None or kept.listed_at - kept.terms_at >= _TERMS_S:
                kept.terms = await kept.provider.terms()
                kept.terms_at = kept.listed_at
        except ProviderError as error:
            self._failed(kept, kept.looks, error)
        else:
            kept.looks.succeeded()

    def _failed(self, kept: _Kept, breaker: Breaker, error: ProviderError) -> None:
        breaker.failed(error, self._clock.monotonic())
        log.warning("provider_failed", provider=kept.config.name, error=str(error))

    def _nodes(self) -> dict[Name, NodeView]:
        """Nodes in containers; of two that say they are in the same, the one that is connected."""
        found: dict[Name, NodeView] = {}
        for node in self._cluster.nodes():
            name = (node.provider, node.container)
            if node.provider in self._kept and (node.connected or name not in found):
                found[name] = node
        return found

    def _situation(self) -> Situation:
        now, monotonic = self._clock.now(), self._clock.monotonic()
        nodes = self._nodes()
        away = {name for name, node in nodes.items() if not node.connected}
        planned = self._sidecar.plan.replicas
        idle = {
            name
            for name, node in nodes.items()
            if node.connected and not node.replicas and not planned.get(node.runner_id)
        }
        self._away_since = {name: self._away_since.get(name, now) for name in away}
        self._idle_since = {name: self._idle_since.get(name, now) for name in idle}
        return Situation(
            now,
            self._began_at,
            {name: self._source(kept, monotonic) for name, kept in self._kept.items()},
            nodes,
            self._lacks(),
            self._away_since,
            self._idle_since,
        )

    def _lacks(self) -> list[Lack]:
        return [
            Lack(model, count, devices_needed(self._models[model]))
            for model, count in self._sidecar.missing.items()
        ]

    def _source(self, kept: _Kept, now: float) -> Source:
        config, terms = kept.config, kept.terms
        price = config.price_per_hour if config.price_per_hour is not None else terms.price_per_hour
        closed = "" if kept.calls.may_ask(now) else f"left alone for a while: {kept.calls.reason}"
        listing = kept.listing if kept.is_fresh(now) else None
        return Source(config, kept.provider.capabilities, listing, price or 0.0, terms.most, closed)

    # -- what is asked for

    async def _ask(self, kept: _Kept) -> None:
        """Ask a provider for what is written down and not to be seen yet, one call at a time."""
        if not kept.is_fresh(self._clock.monotonic()):
            return
        name = kept.config.name
        orders = [order for order in self._decision.orders if order.provider == name]
        count = sum(order.stays for order in orders)
        for order in orders:
            if order.state is OrderState.ORDERED and order.container_id is None:
                await self._call(kept, "create", order.key, count)
            elif order.state is OrderState.REMOVING and order.container_id is not None:
                await self._call(kept, "remove", order.container_id, count)
        for container_id in self._long_unknown(name):
            await self._call(kept, "remove", container_id, count)

    async def _call(self, kept: _Kept, what: str, about: str, count: int) -> None:
        now = self._clock.monotonic()
        asked_at = kept.asked.get((what, about))
        is_asked = asked_at is not None and now - asked_at < _AGAIN_S
        if is_asked or not kept.calls.may_ask(now):
            return
        call = kept.provider.create if what == "create" else kept.provider.remove
        try:
            await call(about, count)
        except ProviderError as error:
            self._failed(kept, kept.calls, error)
            return
        kept.calls.succeeded()
        kept.asked = {key: at for key, at in kept.asked.items() if now - at < _AGAIN_S}
        kept.asked[what, about] = now
        log.info("provider_asked", provider=kept.config.name, what=what, about=about, count=count)
        self._wake.set()

    def _long_unknown(self, provider: str) -> list[str]:
        """Containers of a provider that nobody has ordered and that were left alone for long."""
        now = self._clock.monotonic()
        found = []
        for name, container in self._decision.unknown:
            if name != provider:
                continue
            key = (name, container.id)
            if key not in self._unknown_since:
                self._unknown_since[key] = now
                log.warning("container_unknown", provider=name, container=container.id)
            if now - self._unknown_since[key] >= UNKNOWN_GRACE_S:
                found.append(container.id)
        return found

    # -- what is shown

    def _provider_status(self, kept: _Kept, now: float) -> ProviderStatus:
        config = kept.config
        orders = [o for o in self._decision.orders if o.provider == config.name]
        source = self._source(kept, now)
        state, reason = "ok", ""
        if source.listing is None:
            state, reason = "unseen", kept.looks.reason
        elif source.closed:
            state, reason = "paused", kept.calls.reason
        return ProviderStatus(
            config.name,
            config.kind,
            state,
            reason,
            source.price,
            config.device_kind,
            config.num_devices,
            config.min_containers,
            config.max_containers,
            config.models,
            config.labels,
            source.capabilities.removes_any,
            sum(order.stays for order in orders),
            sum(order.state is OrderState.UP for order in orders),
            tuple(note for note in self._decision.ledger if note.provider == config.name),
        )

    def _container_status(
        self, order: ContainerOrder, nodes: Mapping[Name, NodeView]
    ) -> ContainerStatus:
        kept = self._kept.get(order.provider)
        listed = {each.id: each for each in kept.listing} if kept is not None else {}
        container = listed.get(order.container_id or "")
        node = nodes.get((order.provider, order.container_id or ""))
        return ContainerStatus(
            order,
            container.state.value if container is not None else "",
            container.reason if container is not None else "",
            node.runner_id if node is not None and node.connected else None,
        )


def _decided(tx: Transaction, situation: Situation) -> Decision:
    """Decide on what is written down, and write down what was decided."""
    orders, ledger = tx.container_orders(), tx.provider_ledger()
    decision = decide(situation, orders, ledger)
    for order in set(decision.orders) - set(orders):
        tx.put_container_order(order)
    for note in set(decision.ledger) - set(ledger):
        tx.put_provider_note(note)
    return decision
