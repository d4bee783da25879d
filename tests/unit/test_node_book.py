"""What is written of nodes, and what is refused because somebody else has taken over."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest_asyncio

from scheduler.clock import ManualClock
from scheduler.cluster_view import (
    DeviceView,
    NodeState,
    NodeView,
    Placed,
    ReplicaView,
    TorchServeView,
)
from scheduler.ledger import Ledger
from scheduler.node_book import NodeBook
from scheduler.registration import Leadership
from scheduler.stores.sqlite import MEMORY, Store

PLACED = {"one": (Placed("demo__r0", "demo", (0, 1)),)}


@pytest_asyncio.fixture
async def ledger() -> AsyncIterator[Ledger]:
    store = Store(MEMORY)
    yield Ledger(store, ManualClock())
    await store.close()


def node(runner_id: str = "one", **changes: object) -> NodeView:
    return replace(NodeView("node", runner_id, True, 2), **changes)


async def test_a_node_is_read_as_it_was_written(ledger: Ledger) -> None:
    book = NodeBook(ledger, "here")
    devices = (DeviceView(0, "H100", 0.5, 10, 80), DeviceView(1, "H100"))
    state = NodeState(devices, 0.25, 1, 2, TorchServeView("gone", 3, "it died"), 4)
    replica = ReplicaView("demo__r0", "demo", "ready", 8, 2, (0, 1), "so", {"epoch": 1})
    full = node(replicas=(replica,), models=("demo",), state=state, provider="salad", heard_at=7.5)

    fence = await book.arrive(full)

    registrations, _ = await book.read()
    assert registrations == [replace(full, fence=fence, control_plane="here")]


async def test_every_stream_of_a_runner_has_a_greater_fence(ledger: Ledger) -> None:
    fences = [await NodeBook(ledger, plane).arrive(node()) for plane in ("a", "b", "a")]

    assert fences == [1, 2, 3]


async def test_what_is_heard_on_a_stream_that_was_left_is_not_written(ledger: Ledger) -> None:
    here, there = NodeBook(ledger, "here"), NodeBook(ledger, "there")
    old = node(fence=await here.arrive(node()))
    await there.arrive(node(version="2"))

    superseded = await here.report([replace(old, connected=False)], is_news=True)

    assert superseded == ["one"]
    [registration] = (await here.read())[0]
    assert (registration.connected, registration.version) == (True, "2")


async def test_only_the_leader_of_the_epoch_places(ledger: Ledger) -> None:
    here, there = NodeBook(ledger, "here"), NodeBook(ledger, "there")
    old = await here.lead(Leadership("sidecar"))
    new = await there.lead(old)

    assert await here.place(old.epoch, PLACED) is False
    assert await there.place(old.epoch, PLACED) is False
    assert (await here.read())[1] == {}
    assert await there.place(new.epoch, PLACED) is True
    assert (await here.read())[1] == PLACED


async def test_who_has_shown_a_sign_of_life_meanwhile_is_not_replaced(ledger: Ledger) -> None:
    here, there = NodeBook(ledger, "here"), NodeBook(ledger, "there")
    seen = await here.lead(Leadership("sidecar"))
    alive = await here.lead(seen)

    assert await there.lead(seen) == alive
    assert (alive.holder, alive.epoch, alive.num_beats) == ("here", 1, 1)


async def test_a_runner_left_out_of_the_placement_has_none(ledger: Ledger) -> None:
    book = NodeBook(ledger, "here")
    epoch = (await book.lead(Leadership("sidecar"))).epoch
    await book.place(epoch, {**PLACED, "two": ()})

    await book.place(epoch, {"two": ()})

    assert (await book.read())[1] == {"two": ()}


async def test_who_resigns_leaves_the_place_free(ledger: Ledger) -> None:
    here, there = NodeBook(ledger, "here"), NodeBook(ledger, "there")
    await here.lead(Leadership("sidecar"))

    await there.resign()
    assert (await here.leadership()).holder == "here"
    await here.resign()
    assert (await here.leadership()).holder == ""
