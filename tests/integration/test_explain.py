"""Why a task waits, as clients are told: asked for, in the stream, and on the command line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import grpc
import pytest
import pytest_asyncio

from scheduler import tables
from scheduler.gateway import waiting
from scheduler.rpc import plait_pb2 as pb
from scheduler.rpc.plait_pb2_grpc import TaskServiceStub
from tests.integration.gateway_system import GatewaySystem, ended

TASK = {"model": "demo", "input": {"prompt": "x", "max_new_tokens": 2}}


@pytest_asyncio.fixture
async def idle() -> AsyncIterator[GatewaySystem]:
    """A gateway whose tasks wait, since nobody works."""
    system = GatewaySystem(has_runner=False)
    await system.open()
    yield system
    await system.close()


@pytest_asyncio.fixture
async def http_idle(idle: GatewaySystem) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(idle.url) as session:
        yield session


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "GRACE_S", 0.02)
    monkeypatch.setattr(waiting, "EVERY_S", 0.05)


async def submit(http: aiohttp.ClientSession, **more: Any) -> str:
    answer = await http.post("/v1/tasks", json={**TASK, **more})
    return str((await answer.json())["task_id"])


async def explain(http: aiohttp.ClientSession, task_id: str) -> Any:
    answer = await http.get(f"/v1/tasks/{task_id}/explain")
    assert answer.status == 200
    return await answer.json()


async def test_a_task_that_waits_is_told_what_is_ahead(
    http_idle: aiohttp.ClientSession, idle: GatewaySystem
) -> None:
    await submit(http_idle)
    await submit(http_idle, **{"class": "interactive"})
    other = {"X-Plait-Tenant": "a"}
    async with http_idle.post("/v1/tasks", json=TASK, headers=other) as accepted:
        assert accepted.status == 202
    task_id = await submit(http_idle)

    told = await explain(http_idle, task_id)

    assert (told["state"], told["position"]) == ("queued", 2)
    assert told["ahead"]["own"]["num_tasks"] == 1
    assert told["ahead"]["other_tenants"]["num_tasks"] == 1
    assert told["ahead"]["classes"]["interactive"]["num_tasks"] == 1
    # Sixteen slots are free: it is only not granted because nobody works here.
    task = await idle.book.task(task_id)
    assert told["estimated_start_at"] == pytest.approx(task.accepted_at + told["waited_s"])


async def test_what_is_short_is_told_when_no_replica_is_ready(
    http_idle: aiohttp.ClientSession, idle: GatewaySystem
) -> None:
    idle.cluster.state = "starting"

    told = await explain(http_idle, await submit(http_idle))

    assert [shortage["code"] for shortage in told["short"]] == ["no_replica_ready"]
    assert "demo__r0 is starting" in told["message"]
    assert (told["estimated_start_at"], told["why_unknown"]) == (None, "no replica is ready")
    assert "demo__r0 is starting" in tables.explanation_story(told)


async def test_the_story_of_a_task_that_ended(
    http: aiohttp.ClientSession, system: GatewaySystem
) -> None:
    task_id = await submit(http)
    await ended(system, task_id)

    told = await explain(http, task_id)

    assert (told["state"], told["short"], told["ahead"]) == ("succeeded", [], None)
    (attempt,) = told["attempts"]
    assert (attempt["outcome"], attempt["num_tokens"]) == ("succeeded", 2)
    assert told["waited_s"] + told["worked_s"] < 5
    assert "attempt 1 on demo__r0 of r1" in tables.explanation_story(told)


async def test_a_task_is_explained_to_its_tenant_alone(http: aiohttp.ClientSession) -> None:
    task_id = await submit(http)

    other = {"X-Plait-Tenant": "other"}
    async with http.get(f"/v1/tasks/{task_id}/explain", headers=other) as answer:
        assert answer.status == 404


async def test_the_stream_explains_while_a_task_waits(
    http_idle: aiohttp.ClientSession, idle: GatewaySystem
) -> None:
    idle.cluster.state = "starting"
    task_id = await submit(http_idle)
    answer = await http_idle.get(f"/v1/tasks/{task_id}/events")
    first = [await _event(answer), await _event(answer)]
    idle.cluster.state = "ready"
    second = await _event(answer)
    await idle.book.cancel(task_id)
    last = await _event(answer)
    answer.close()

    assert [event["event"] for event in (*first, second, last)] == [
        "state", "explain", "explain", "end",
    ]  # fmt: skip
    assert first[1]["data"]["short"][0]["code"] == "no_replica_ready"
    assert second["data"]["estimated_start_at"] is not None
    assert {event["id"] for event in (*first, second, last)} == {"0"}


async def test_nothing_new_is_not_told_again_and_silence_is_still_filled(
    http_idle: aiohttp.ClientSession, idle: GatewaySystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scheduler.gateway.tasks_api.HEARTBEAT_S", 0.2)
    idle.cluster.state = "starting"
    task_id = await submit(http_idle)
    answer = await http_idle.get(f"/v1/tasks/{task_id}/events")
    told = [await _event(answer), await _event(answer)]

    beats = [(await answer.content.readuntil(b"\n\n")) for _ in range(2)]
    answer.close()

    assert [event["event"] for event in told] == ["state", "explain"]
    assert beats == [b": alive\n\n"] * 2


async def test_grpc_tells_the_same(idle: GatewaySystem, http_idle: aiohttp.ClientSession) -> None:
    idle.cluster.state = "starting"
    task_id = await submit(http_idle)

    async with grpc.aio.insecure_channel(idle.grpc_target) as channel:
        call = TaskServiceStub(channel).Watch(pb.WatchRequest(task_id=task_id, tenant="default"))
        events = [await anext(aiter(call)) for _ in range(2)]
        call.cancel()

    assert [event.WhichOneof("body") for event in events] == ["task_json", "explanation_json"]
    told = json.loads(events[1].explanation_json)
    assert told["short"][0]["code"] == "no_replica_ready"


async def _event(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    async with asyncio.timeout(5):
        lines = (await answer.content.readuntil(b"\n\n")).decode().strip().splitlines()
    fields = dict(line.split(": ", 1) for line in lines)
    return {**fields, "data": json.loads(fields["data"])}
