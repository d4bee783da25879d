"""What owners do with their tasks: pause, resume, dead letters, at every door."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import grpc
import pytest
import pytest_asyncio

from scheduler.rpc import plait_pb2 as pb
from scheduler.rpc.plait_pb2_grpc import TaskServiceStub
from scheduler.task import Submission, Task, TaskState
from tests.integration.gateway_system import NUM_WORDS_HELD, GatewaySystem, ended

HOLD = {"prompt": "hold on", "max_new_tokens": 6}


@pytest_asyncio.fixture
async def tasks(system: GatewaySystem) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(system.grpc_target) as channel:
        yield TaskServiceStub(channel)


@pytest_asyncio.fixture
async def alone() -> AsyncIterator[GatewaySystem]:
    """A gateway without a runner, where one lost attempt is the last."""
    running = GatewaySystem(has_runner=False)
    running.max_attempts = 1
    await running.open()
    yield running
    await running.close()


async def held(system: GatewaySystem, **fields: Any) -> str:
    """A task in the middle of its answer."""
    submission = Submission("default", "demo", HOLD, 10, **fields)
    task, _ = await system.book.submit(submission)
    await system.wait_for_words(task.id, NUM_WORDS_HELD)
    return task.id


async def dead_letter(system: GatewaySystem) -> Task:
    task, _ = await system.book.submit(Submission("default", "demo", HOLD, 10))
    (grant,) = await system.book.claim("demo", runner="r1", replica="demo__r0")
    await system.book.release(task.id, grant.task.fence, "its worker died")
    return task


def frames(text: str) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for frame in text.strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in frame.splitlines())
        found.append((lines["event"], json.loads(lines["data"])))
    return found


# -- pause and resume


async def test_a_paused_task_goes_on_where_it_was_when_it_is_resumed(
    http: aiohttp.ClientSession, system: GatewaySystem
) -> None:
    task_id = await held(system)

    paused = await (await http.post(f"/v1/tasks/{task_id}/pause")).json()
    assert (paused["state"], paused["num_chunks"]) == ("paused", NUM_WORDS_HELD)
    assert system.runner is not None
    system.runner.go_on.set()
    resumed = await (await http.post(f"/v1/tasks/{task_id}/resume")).json()

    assert resumed["state"] == "queued"
    task = await ended(system, task_id)
    assert (task.state, task.num_tokens) == (TaskState.SUCCEEDED, 6)
    outcomes = [attempt.outcome for attempt in await system.book.attempts(task_id)]
    assert outcomes == ["paused", "succeeded"]


async def test_a_follower_of_a_paused_task_waits_and_hears_why(
    http: aiohttp.ClientSession, system: GatewaySystem
) -> None:
    task_id = await held(system)
    async with http.get(f"/v1/tasks/{task_id}/events?cursor={NUM_WORDS_HELD}") as answer:
        await http.post(f"/v1/tasks/{task_id}/pause")
        assert system.runner is not None
        system.runner.go_on.set()
        await http.post(f"/v1/tasks/{task_id}/resume")

        told = frames(await answer.text())

    paused = next(document for _, document in told if document.get("state") == "paused")
    assert paused["last_attempt"]["outcome"] == "paused"
    assert [document["seq"] for kind, document in told if kind == "chunk"] == [3, 4, 5]
    assert told[-1][0] == "end"


@pytest.mark.parametrize("move", ["pause", "resume"])
async def test_repeating_a_move_changes_nothing(alone: GatewaySystem, move: str) -> None:
    task, _ = await alone.book.submit(Submission("default", "demo", HOLD, 10))
    async with aiohttp.ClientSession(alone.url) as session:
        await session.post(f"/v1/tasks/{task.id}/pause")

        answers = [await session.post(f"/v1/tasks/{task.id}/{move}") for _ in range(2)]

        states = [(await answer.json())["state"] for answer in answers]
    assert states == ["paused" if move == "pause" else "queued"] * 2


async def test_a_task_that_could_not_go_on_is_not_paused(
    http: aiohttp.ClientSession, system: GatewaySystem
) -> None:
    task_id = await held(system, resume="none")

    answer = await http.post(f"/v1/tasks/{task_id}/pause")

    assert answer.status == 409
    assert (await answer.json())["type"] == "NotResumable"
    assert (await system.book.task(task_id)).state is TaskState.LEASED


@pytest.mark.parametrize("move", ["pause", "resume", "requeue"])
async def test_a_task_that_has_succeeded_is_left_alone(
    http: aiohttp.ClientSession, system: GatewaySystem, move: str
) -> None:
    document = {"prompt": "x", "max_new_tokens": 1}
    task, _ = await system.book.submit(Submission("default", "demo", document, 10))
    await ended(system, task.id)

    answer = await http.post(f"/v1/tasks/{task.id}/{move}")

    assert answer.status == 409
    assert (await answer.json())["type"] == "InvalidTransition"


@pytest.mark.parametrize("move", ["pause", "resume", "requeue"])
async def test_another_tenant_s_task_cannot_be_moved(
    http: aiohttp.ClientSession, system: GatewaySystem, move: str
) -> None:
    task_id = await held(system)

    answer = await http.post(f"/v1/tasks/{task_id}/{move}", headers={"X-Plait-Tenant": "other"})

    assert answer.status == 404


async def test_grpc_pauses_and_resumes_too(tasks: Any, system: GatewaySystem) -> None:
    task_id = await held(system)
    request = pb.TaskRequest(task_id=task_id, tenant="default")

    paused = json.loads((await tasks.Pause(request)).task_json)
    resumed = json.loads((await tasks.Resume(request)).task_json)

    assert (paused["state"], resumed["state"]) == ("paused", "queued")


async def test_grpc_tells_a_move_that_is_not_allowed_as_aborted(
    tasks: Any, system: GatewaySystem
) -> None:
    task_id = await held(system)
    await system.book.cancel(task_id)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await tasks.Pause(pb.TaskRequest(task_id=task_id))

    assert caught.value.code() is grpc.StatusCode.ABORTED
    trailers = dict(caught.value.trailing_metadata() or ())
    assert trailers["x-plait-type"] == "InvalidTransition"


# -- dead letters


async def test_dead_letters_are_listed_and_requeued(alone: GatewaySystem) -> None:
    dead = await dead_letter(alone)
    living, _ = await alone.book.submit(Submission("default", "demo", HOLD, 10))
    async with aiohttp.ClientSession(alone.url) as http:
        listing = await (await http.get("/v1/tasks?dead=true")).json()
        requeued = await (await http.post(f"/v1/tasks/{dead.id}/requeue")).json()
        after = await (await http.get("/v1/tasks?dead=true")).json()

    assert [task["task_id"] for task in listing["tasks"]] == [dead.id]
    assert listing["tasks"][0]["is_dead"] is True
    assert (requeued["state"], requeued["num_lost"], requeued["error"]) == ("queued", 0, None)
    assert after == {"tasks": []}
    assert (await alone.book.task(living.id)).state is TaskState.QUEUED


async def test_grpc_lists_and_requeues_dead_letters(alone: GatewaySystem) -> None:
    dead = await dead_letter(alone)
    async with grpc.aio.insecure_channel(alone.grpc_target) as channel:
        stub = TaskServiceStub(channel)
        listing = await stub.List(pb.ListRequest(is_dead=True))
        reply = await stub.Requeue(pb.TaskRequest(task_id=dead.id))

    assert [json.loads(task)["task_id"] for task in listing.task_json] == [dead.id]
    assert json.loads(reply.task_json)["state"] == "queued"


async def test_tasks_are_listed_by_each_of_the_states(alone: GatewaySystem) -> None:
    task, _ = await alone.book.submit(Submission("default", "demo", HOLD, 10))
    await alone.book.pause(task.id)
    async with aiohttp.ClientSession(alone.url) as http:
        paused = await (await http.get("/v1/tasks?state=paused")).json()
        delayed = await (await http.get("/v1/tasks?state=delayed")).json()

    assert [task["state"] for task in paused["tasks"]] == ["paused"]
    assert delayed == {"tasks": []}


# -- the rest of what gRPC has


async def test_grpc_takes_a_task_and_tells_all_of_it(tasks: Any, system: GatewaySystem) -> None:
    request = pb.SubmitRequest(
        model="demo",
        input_json='{"prompt": "x", "max_new_tokens": 2}',
        tenant="red",
        priority_class="batch",
        priority=3,
        deadline_s=60,
        idempotency_key="k",
    )
    accepted = json.loads((await tasks.Submit(request)).task_json)
    again = json.loads((await tasks.Submit(request)).task_json)
    await ended(system, accepted["task_id"])

    asked = pb.TaskRequest(task_id=accepted["task_id"], tenant="red")
    detail = json.loads((await tasks.Get(asked)).task_json)

    assert again["task_id"] == accepted["task_id"]
    assert (detail["class"], detail["priority"], detail["tenant"]) == ("batch", 3, "red")
    assert detail["output"]["text"] == "w0 w1 "


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"input_json": "no json"}, "input_json"),
        ({"input_json": "[]"}, "input_json"),
        ({"priority": 5000}, "priority"),
        ({"priority_class": "Gold!"}, "class"),
        ({"priority_class": "gold"}, "class"),
        ({"deadline_s": -1}, "deadline_s"),
        ({"tenant": "no tenant"}, "tenant"),
    ],
    ids=str,
)
async def test_grpc_names_the_field_of_a_wrong_submission(
    tasks: Any, changes: dict[str, Any], field: str
) -> None:
    request = {"model": "demo", "input_json": '{"prompt": "x"}', **changes}

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await tasks.Submit(pb.SubmitRequest(**request))

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert dict(caught.value.trailing_metadata() or ())["x-plait-field"] == field


async def test_grpc_takes_a_task_back(tasks: Any, system: GatewaySystem) -> None:
    task_id = await held(system)

    reply = await tasks.Cancel(pb.TaskRequest(task_id=task_id))

    assert json.loads(reply.task_json)["state"] == "cancelled"


async def test_grpc_refuses_a_page_that_is_too_long(tasks: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await tasks.List(pb.ListRequest(limit=1001))

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
