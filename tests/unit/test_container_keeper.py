"""The keeper of containers, with a provider that is played and a store in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio

from scheduler.autoscaler import container_keeper
from scheduler.autoscaler.container_keeper import ContainerKeeper
from scheduler.autoscaler.placement import Plan
from scheduler.clock import ManualClock
from scheduler.cluster_view import NodeView, ReplicaView
from scheduler.container import OrderState, Reliance
from scheduler.providers.base import (
    Capabilities,
    Container,
    ContainerState,
    ProviderConfig,
    ProviderError,
    ProviderRefused,
    ProviderUnavailable,
    Terms,
)
from scheduler.stores import sqlite
from scheduler.stores.base import Store
from scheduler.testing.models import config

MODEL = config()


class Played:
    """A provider that keeps keys, and does what the test says."""

    capabilities = Capabilities(removes_any=True, replaces_lost=False)

    def __init__(self) -> None:
        self.there: dict[str, Container] = {}
        self.lagging: list[Container] | None = None
        self.calls: list[str] = []
        self.failure: ProviderError | None = None
        self.fails_afterwards = False
        self.is_away = False

    async def containers(self) -> list[Container]:
        if self.is_away:
            raise ProviderUnavailable("away")
        return list(self.there.values()) if self.lagging is None else self.lagging

    async def create(self, key: str, count: int) -> None:
        self.calls.append(f"create {key} {count}")
        if self.failure is None or self.fails_afterwards:
            running = ContainerState.RUNNING
            self.there.setdefault(key, Container(key, running, key=key, incarnation="1"))
        if self.failure is not None:
            raise self.failure

    async def remove(self, container_id: str, count: int) -> None:
        self.calls.append(f"remove {container_id} {count}")
        self.there.pop(container_id, None)

    async def terms(self) -> Terms:
        return Terms()

    async def close(self) -> None: ...


class World:
    """A keeper, and what it sees."""

    def __init__(self, store: Store, played: Played) -> None:
        self.clock, self.store, self.played = ManualClock(), store, played
        self.nodes: dict[str, NodeView] = {}
        self.sidecar: Any = SimpleNamespace(
            plan=Plan({}), missing={}, heed=lambda traits: None, look_again=lambda: None
        )
        self.config = ProviderConfig("here", "local", 3, idle_s=60.0, start_timeout_s=300.0)
        self.reliance = Reliance()
        self.epoch: int | None = 1
        self.restart()

    def restart(self) -> None:
        """A control plane that was started anew."""
        cluster: Any = SimpleNamespace(
            nodes=lambda: list(self.nodes.values()), on_nodes_changed=lambda listener: None
        )
        providers = [(self.config, self.played)]
        self.keeper = ContainerKeeper(
            providers,
            {MODEL.name: MODEL},
            self.store,
            cluster,
            self.sidecar,
            self.reliance,
            self.clock,
            lead=self.lead,
        )

    async def lead(self) -> int | None:
        return self.epoch

    async def look(self, times: int = 1, *, missing: int = 0, after_s: float = 1.0) -> None:
        for _ in range(times):
            self.clock.advance(after_s)
            replicas = {node.runner_id: () for node in self.nodes.values()}
            self.sidecar.plan = Plan(replicas)
            self.sidecar.missing = {MODEL.name: missing} if missing else {}
            await self.keeper.look()

    def connect(self, container: str, *, num_replicas: int = 0) -> None:
        replica = ReplicaView("demo__r0", MODEL.name, "ready", 4, 0)
        replicas = (replica,) * num_replicas
        self.nodes[container] = NodeView(
            container, container, True, 0, replicas, provider="here", container=container
        )

    def states(self) -> list[tuple[str, OrderState]]:
        return [(each.order.key, each.order.state) for each in self.keeper.view().containers]


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    store = sqlite.Store(sqlite.MEMORY)
    yield World(store, Played())
    await store.close()


async def test_an_order_is_asked_for_and_comes_up(world: World) -> None:
    await world.look(missing=1)
    assert world.played.calls == ["create here-0-1 1"]

    world.connect("here-0-1")
    await world.look()

    assert world.states() == [("here-0-1", OrderState.UP)]


async def test_looking_again_orders_nothing_more(world: World) -> None:
    await world.look(5, missing=1)

    assert world.played.calls == ["create here-0-1 1"]


async def test_a_creation_that_failed_after_it_had_succeeded_comes_to_one(world: World) -> None:
    world.played.failure, world.played.fails_afterwards = ProviderUnavailable("500"), True
    await world.look(missing=1)
    world.played.failure = None

    await world.look(3, missing=1)

    assert list(world.played.there) == ["here-0-1"]


async def test_a_listing_that_lags_comes_to_one(world: World) -> None:
    world.played.lagging = []
    await world.look(40, missing=1)

    assert set(world.played.calls) == {"create here-0-1 1"}
    assert list(world.played.there) == ["here-0-1"]


@pytest.mark.parametrize("num_looks", [1, 2, 3])
async def test_a_keeper_that_is_killed_at_any_look_comes_to_the_same(
    world: World, num_looks: int
) -> None:
    await world.look(num_looks, missing=2)
    world.restart()

    await world.look(3, missing=2)

    assert list(world.played.there) == ["here-0-1", "here-1-1"]


async def test_one_that_dies_between_writing_and_asking_asks_later(world: World) -> None:
    world.played.failure = ProviderUnavailable("the process died here")
    await world.look(missing=1)
    world.played.failure = None
    world.restart()

    await world.look(missing=1)

    assert world.played.calls == ["create here-0-1 1"] * 2
    assert list(world.played.there) == ["here-0-1"]


async def test_nothing_is_done_while_the_listing_is_stale(world: World) -> None:
    await world.look(missing=1)
    world.connect("here-0-1")
    await world.look()
    world.played.is_away = True

    await world.look(5, missing=2, after_s=60.0)

    assert world.played.calls == ["create here-0-1 1"]
    assert world.keeper.view().providers[0].state == "unseen"
    assert world.keeper.view().shortages == {MODEL.name: "here: not listed of late"}


async def test_a_provider_that_keeps_failing_is_asked_less_and_less(world: World) -> None:
    world.played.failure = ProviderUnavailable("HTTP 500")

    await world.look(60, missing=1)

    assert 3 <= len(world.played.calls) < 10
    assert world.keeper.view().providers[0].state == "paused"


async def test_a_lost_one_is_noted_and_the_next_generation_ordered(world: World) -> None:
    await world.look(missing=1)
    world.connect("here-0-1")
    await world.look()
    world.played.there.clear()
    world.nodes.clear()

    await world.look(2, missing=1)

    assert world.played.calls[-1] == "create here-0-2 1"
    assert world.keeper.view().providers[0].flakiness[0].losses == pytest.approx(1, abs=0.01)
    assert world.reliance.is_flaky("here", "here-0-2")


async def test_one_that_is_idle_drains_before_it_is_removed(world: World) -> None:
    await world.look(missing=1)
    world.connect("here-0-1")
    await world.look(2)
    await world.look(after_s=60.0)
    assert world.states() == [("here-0-1", OrderState.LEAVING)]
    assert world.keeper.traits()["here-0-1"].is_leaving

    world.connect("here-0-1", num_replicas=1)
    await world.look(3)
    assert "remove" not in " ".join(world.played.calls)

    world.connect("here-0-1", num_replicas=0)
    await world.look(2)
    assert world.played.calls[-1] == "remove here-0-1 0"
    assert world.states() == []


async def test_how_long_one_was_idle_before_another_decided_does_not_count(world: World) -> None:
    await world.look(missing=1)
    world.connect("here-0-1")
    await world.look(2)

    world.epoch = None
    await world.look(after_s=60.0)
    world.epoch = 2
    await world.look()

    assert world.states() == [("here-0-1", OrderState.UP)]
    await world.look(after_s=60.0)
    assert world.states() == [("here-0-1", OrderState.LEAVING)]


async def test_one_that_does_not_get_empty_is_removed_in_the_end(world: World) -> None:
    await world.look(missing=1)
    world.connect("here-0-1")
    await world.look(2)
    await world.look(after_s=60.0)
    world.connect("here-0-1", num_replicas=1)

    await world.look(after_s=world.config.drain_timeout_s)

    assert world.played.calls[-1] == "remove here-0-1 0"


async def test_containers_of_a_lost_store_are_adopted(world: World) -> None:
    running = ContainerState.RUNNING
    world.played.there["here-1-4"] = Container("here-1-4", running, key="here-1-4", incarnation="1")
    world.connect("here-1-4")

    await world.look(2)

    assert world.states() == [("here-1-4", OrderState.UP)]
    assert world.played.calls == []


async def test_an_unknown_one_is_shown_and_removed_after_a_grace(world: World) -> None:
    stranger = Container("x", ContainerState.RUNNING, key="x", incarnation="1")
    world.played.there["x"] = stranger
    await world.look(2)
    assert world.keeper.view().unknown == [("here", "x")]
    assert world.played.calls == []

    await world.look(after_s=container_keeper.UNKNOWN_GRACE_S)

    assert world.played.calls == ["remove x 0"]


async def test_a_runner_that_is_cut_off_for_a_moment_costs_no_container(world: World) -> None:
    await world.look(missing=1)
    world.connect("here-0-1")
    await world.look(60)
    world.nodes["here-0-1"] = replace(world.nodes["here-0-1"], connected=False)

    await world.look(20)

    assert world.states() == [("here-0-1", OrderState.UP)]
    assert world.keeper.view().providers[0].flakiness[0].stalls == 0


async def test_an_order_that_is_refused_is_taken_back_and_made_again_later(world: World) -> None:
    world.played.failure = ProviderRefused("out of quota")
    await world.look(2, missing=1)
    assert world.states() == []
    assert "out of quota" in world.keeper.view().shortages[MODEL.name]
    world.played.failure = None

    await world.look(6, missing=1)

    assert world.played.calls == ["create here-0-1 1", "create here-0-2 1"]
