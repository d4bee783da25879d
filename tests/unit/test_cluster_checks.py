"""What runs against what should: each kind of drift of a cluster, found and seen to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from scheduler.autoscaler.placement import Plan
from scheduler.cluster_view import NodeView, Placed, ReplicaView
from scheduler.dispatcher.service import Dispatcher
from scheduler.drift import Finding
from scheduler.node_book import NodeBook
from scheduler.reconciliation.cluster import NODE_KEPT_S
from tests.unit.drifting_store import Drifting, drifting, node


@pytest_asyncio.fixture
async def store() -> AsyncIterator[Drifting]:
    async with drifting() as opened:
        yield opened


def replica(name: str = "demo__r0", **changes: Any) -> ReplicaView:
    return replace(ReplicaView(name, "demo", "ready", 4, 0), **changes)


async def lasting(store: Drifting, name: str) -> list[str]:
    """What a check finds of what has been so for half a minute."""
    for _ in range(36):
        await store.reconciliation.look()
        store.advance(1.0)
    return [f"{each.subject} {each.problem}" for each in (await store.found()).get(name, [])]


async def test_a_worker_nobody_asked_for_has_its_runner_told_again(store: Drifting) -> None:
    store.plan = Plan({"r1": (Placed("demo__r0", "demo"),)})
    store.cluster.shown = [node("r1", replica(), replica("demo__r7"))]

    found = await lasting(store, "workers_nobody_asked_for")

    assert found == ["replica demo__r7 of runner r1 runs, and nobody asked for it"]
    assert "r1" in store.cluster.told
    store.cluster.shown = [node("r1", replica())]
    assert await store.found() == {}


async def test_a_worker_that_drains_is_left_to_finish(store: Drifting) -> None:
    store.plan = Plan({"r1": ()})
    store.cluster.shown = [node("r1", replica(state="draining", in_flight=1))]

    assert await lasting(store, "workers_nobody_asked_for") == []


async def test_a_replica_that_does_not_come_up_is_reported_with_its_reason(
    store: Drifting,
) -> None:
    store.plan = Plan({"r1": (Placed("demo__r0", "demo"),)}, {"big": "no runner is connected"})
    store.cluster.shown = [node("r1", replica(state="failed", detail="no such file"))]

    found = await lasting(store, "replicas_short")

    assert found == [
        "model big no runner is connected",
        "replica demo__r0 of runner r1 is failed: no such file",
    ]
    assert "r1" in store.cluster.told
    assert store.tally("replicas_short").num_repaired == 0
    store.plan, store.cluster.shown = (
        Plan({"r1": (Placed("demo__r0", "demo"),)}),
        [node("r1", replica())],
    )
    assert await store.found() == {}
    assert store.tally("replicas_short").open == ()


async def test_a_device_two_replicas_hold_is_found_until_one_is_to_go(store: Drifting) -> None:
    both = replica(device_ids=(0, 1)), replica("demo__r1", device_ids=(1, 2))
    store.cluster.shown = [node("r1", *both, num_devices=4)]
    store.plan = Plan(
        {"r1": (Placed("demo__r0", "demo", (0, 1)), Placed("demo__r1", "demo", (1, 2)))}
    )

    found = await store.found()
    store.plan = Plan({"r1": (Placed("demo__r0", "demo", (0, 1)),)})
    then = await store.found()

    held = "device 1 of runner r1", "is held by demo__r0, demo__r1"
    assert found == {"devices_counted_twice": [Finding(*held, is_repaired=False)]}
    assert then == {"devices_counted_twice": [Finding(*held)]}
    store.cluster.shown = [node("r1", both[0], num_devices=4)]
    assert await store.found() == {}


async def test_a_machine_whose_devices_two_runners_count_is_reported(store: Drifting) -> None:
    shared = [node(runner, node="gpu-1", num_devices=8) for runner in ("r1", "r2")]
    store.cluster.shown = [*shared, node("r3", node="cpu-1"), node("r4", node="cpu-1")]

    (finding,) = (await store.found())["devices_counted_twice"]

    assert finding.subject == "node gpu-1"
    assert "counted by the runners r1, r2" in finding.problem
    assert not finding.is_repaired


async def test_runners_that_are_gone_are_forgotten(store: Drifting) -> None:
    store.cluster.silent, store.cluster.lost = {"r1": 8.0}, ["r2"]

    found = await store.found()

    assert found == {
        "stale_registrations": [
            Finding("runner r1", "said nothing for 8.0 s"),
            Finding("runner r2", "went away and did not come back"),
        ]
    }
    assert await store.found() == {}


async def test_nobody_counts_as_silent_while_it_is_we_who_did_not_listen(store: Drifting) -> None:
    nodes = NodeBook(store.book.ledger, "plane")
    dispatcher = Dispatcher(store.book, nodes, store.clock, lease_ttl_s=10.0, heartbeat_s=2.0)
    dispatcher.dismiss_silent()
    link = type("Link", (), {"heard_at": store.clock.monotonic(), "runner_id": "r1"})()
    dispatcher._links["r1"] = link

    store.advance(60)

    assert dispatcher.dismiss_silent() == {}
    with pytest.raises(AttributeError):  # it would be ended, if it were a stream
        dispatcher.dismiss_silent()


async def test_a_node_that_has_been_away_for_long_is_forgotten(store: Drifting) -> None:
    nodes = NodeBook(store.book.ledger, "plane")
    now = store.clock.now()
    for name, heard_at in (("old", now - NODE_KEPT_S - 1), ("new", now)):
        await nodes.arrive(NodeView(name, name, True, 0, heard_at=heard_at))

    await store.found()

    registrations, _ = await nodes.read()
    assert [each.node for each in registrations] == ["new"]
