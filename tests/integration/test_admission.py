"""Who is let in and who is not: classes, quotas and back-pressure, as each door tells it."""

from __future__ import annotations

import json
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
import pytest_asyncio

from scheduler.operations import TenantChange
from scheduler.rpc import inference_pb2
from scheduler.rpc import plait_pb2 as pb
from scheduler.rpc.inference_pb2_grpc import InferenceAPIsServiceStub
from scheduler.rpc.plait_pb2_grpc import TaskServiceStub
from scheduler.stores.sqlite import Store
from scheduler.task import TaskState
from tests.integration.gateway_system import NUM_WORDS_HELD, GatewaySystem, first_task

INPUT = {"prompt": "x", "max_new_tokens": 2}


@pytest_asyncio.fixture
async def alone() -> AsyncIterator[GatewaySystem]:
    """A gateway without a runner: what is accepted stays queued."""
    running = GatewaySystem(has_runner=False)
    running.max_queued = 3
    await running.open()
    yield running
    await running.close()


@pytest_asyncio.fixture
async def door(alone: GatewaySystem) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(alone.url) as session:
        yield session


async def submit(http: aiohttp.ClientSession, **fields: Any) -> aiohttp.ClientResponse:
    return await http.post("/v1/tasks", json={"model": "demo", "input": INPUT, **fields})


# -- classes


async def test_a_task_is_of_the_class_that_was_asked_for(door: aiohttp.ClientSession) -> None:
    asked = await (await submit(door, **{"class": "batch"})).json()
    unasked = await (await submit(door)).json()

    assert (asked["class"], unasked["class"]) == ("batch", "standard")


async def test_a_class_that_operators_add_can_be_asked_for(
    door: aiohttp.ClientSession, alone: GatewaySystem
) -> None:
    await alone.operations.set_class("gold", 9000)

    answer = await submit(door, **{"class": "gold"})

    assert (await answer.json())["class"] == "gold"


async def test_an_unknown_class_is_refused_with_the_known_ones(door: aiohttp.ClientSession) -> None:
    answer = await submit(door, **{"class": "gold"})

    problem = await answer.json()
    assert (answer.status, problem["field"]) == (422, "class")
    assert "batch, interactive, standard" in problem["message"]


async def test_a_class_that_is_not_the_tenant_s_is_refused(
    door: aiohttp.ClientSession, alone: GatewaySystem
) -> None:
    await alone.operations.set_tenant("default", TenantChange(classes=("batch",)))

    answer = await submit(door, **{"class": "interactive"})

    problem = await answer.json()
    assert (answer.status, problem["type"]) == (403, "ClassNotAllowed")
    assert "it may use: batch" in problem["message"]


@pytest.mark.parametrize("way", ["header", "body"])
async def test_a_prediction_is_of_the_class_that_was_asked_for(
    http: aiohttp.ClientSession, system: GatewaySystem, way: str
) -> None:
    headers = {"X-Plait-Class": "interactive"} if way == "header" else {}
    fields = {} if way == "header" else {"class": "interactive"}

    answer = await http.post("/predictions/demo", json={**INPUT, **fields}, headers=headers)

    assert answer.status == 200, await answer.text()
    assert (await first_task(system)).priority_class == "interactive"


async def test_torchserve_s_grpc_takes_the_class_from_its_metadata(system: GatewaySystem) -> None:
    request = inference_pb2.PredictionsRequest(model_name="demo", input={"data": b"x"})
    async with grpc.aio.insecure_channel(system.grpc_target) as channel:
        stub = InferenceAPIsServiceStub(channel)
        await stub.Predictions(request, metadata=(("x-plait-class", "batch"),))

    assert (await first_task(system)).priority_class == "batch"


# -- quotas


async def test_a_full_queue_is_told_with_its_quota_and_when_to_come_back(
    door: aiohttp.ClientSession, alone: GatewaySystem
) -> None:
    await alone.operations.set_tenant("default", TenantChange(max_queued=1))
    await submit(door)

    answer = await submit(door)

    problem = await answer.json()
    assert (answer.status, problem["type"], problem["quota"]) == (
        429,
        "QuotaExceeded",
        "max_queued",
    )
    assert answer.headers["Retry-After"] == "5"
    assert "has 1 tasks queued and may have 1" in problem["message"]


async def test_a_spent_allowance_says_when_there_is_enough_again(
    door: aiohttp.ClientSession, alone: GatewaySystem
) -> None:
    first = await (await submit(door)).json()
    cost = first["estimated_cost"]
    await alone.operations.set_tenant("default", TenantChange(cost_per_minute=cost))
    await submit(door)

    answer = await submit(door)

    problem = await answer.json()
    assert (answer.status, problem["quota"]) == (429, "cost_per_minute")
    assert 50 < problem["retry_after_s"] <= 60
    assert int(answer.headers["Retry-After"]) >= problem["retry_after_s"]


async def test_grpc_tells_a_quota_in_its_trailers(alone: GatewaySystem) -> None:
    await alone.operations.set_tenant("default", TenantChange(max_queued=1))
    request = pb.SubmitRequest(model="demo", input_json=json.dumps(INPUT))
    async with grpc.aio.insecure_channel(alone.grpc_target) as channel:
        stub = TaskServiceStub(channel)
        await stub.Submit(request)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Submit(request)

    trailers = dict(caught.value.trailing_metadata() or ())
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (trailers["x-plait-quota"], trailers["x-plait-retry-after-s"]) == ("max_queued", "5.000")


async def test_grpc_tells_a_class_that_is_not_the_tenant_s(alone: GatewaySystem) -> None:
    await alone.operations.set_tenant("default", TenantChange(classes=("batch",)))
    request = pb.SubmitRequest(model="demo", input_json=json.dumps(INPUT))
    async with grpc.aio.insecure_channel(alone.grpc_target) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await TaskServiceStub(channel).Submit(request)

    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


# -- back-pressure


async def test_more_than_may_be_queued_of_all_tenants_is_refused(
    door: aiohttp.ClientSession, alone: GatewaySystem
) -> None:
    accepted = [await submit(door, idempotency_key=str(i)) for i in range(3)]

    answer = await submit(door)

    problem = await answer.json()
    assert [each.status for each in accepted] == [202, 202, 202]
    assert (answer.status, problem["type"]) == (503, "Overloaded")
    assert "3 tasks are queued" in problem["message"]
    assert answer.headers["Retry-After"] == "5"


async def test_it_lets_in_again_when_the_queue_is_shorter(
    door: aiohttp.ClientSession, alone: GatewaySystem
) -> None:
    for _ in range(4):
        await submit(door)
    await alone.book.claim("demo", runner="r1", replica="demo__r0")
    await alone.pressure.look()

    assert (await submit(door)).status == 202


async def test_a_disk_that_fills_refuses_new_work_and_running_work_is_written(
    http: aiohttp.ClientSession, system: GatewaySystem
) -> None:
    hold = {"prompt": "hold", "max_new_tokens": 6}
    running = await (await submit(http, input=hold)).json()
    await system.wait_for_words(running["task_id"], NUM_WORDS_HELD)
    system.free_bytes = 999
    await system.pressure.look()

    answer = await submit(http)
    assert system.runner is not None
    system.runner.go_on.set()
    await system.wait_for_words(running["task_id"], 6)

    assert answer.status == 503
    assert "999 bytes left" in (await answer.json())["message"]
    system.free_bytes = 1000
    await system.pressure.look()
    assert (await submit(http)).status == 202


# -- a disk that is full


@contextmanager
def no_more_pages(store: Store) -> Iterator[None]:
    """SQLite's own limit: it answers as it does when the disk is full."""
    (pages,) = store._writer.execute("PRAGMA page_count").fetchone()
    store._writer.execute(f"PRAGMA max_page_count = {pages}")
    yield
    store._writer.execute("PRAGMA max_page_count = 1000000")


@contextmanager
def no_larger_files(store: Store) -> Iterator[None]:
    """The kernel refuses every write beyond what the write-ahead log has already."""
    log = Path(f"{store._path}-wal")
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, hard))


@pytest.mark.parametrize("full", [no_more_pages, no_larger_files])
async def test_what_was_accepted_survives_a_disk_that_is_full(tmp_path: Path, full: Any) -> None:
    system = GatewaySystem(tmp_path / "plait.db", has_runner=False)
    await system.open()
    large = {"model": "encoder", "input": {"input": ["x" * 20_000]}}
    async with aiohttp.ClientSession(system.url) as http:
        answers = [await submit(http) for _ in range(3)]
        accepted = [(await answer.json())["task_id"] for answer in answers]
        with full(system.store):
            refused = [await submit(http, **large) for _ in range(3)]
        later = await (await submit(http, **large)).json()
    await system.close()

    assert [answer.status for answer in refused] == [503, 503, 503]
    assert {(await answer.json())["type"] for answer in refused} == {"StoreUnavailable"}
    assert all("Retry-After" in answer.headers for answer in refused)
    await system.open()
    kept = await system.book.tasks()
    await system.close()
    assert {task.id for task in kept} == {*accepted, later["task_id"]}
    assert {task.state for task in kept} == {TaskState.QUEUED}
