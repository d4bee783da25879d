"""The gRPC gateway: TorchServe's own service, and the one that follows tasks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.empty_pb2 import Empty

from scheduler.errors import StoreUnavailable
from scheduler.rpc import inference_pb2, plait_pb2
from scheduler.rpc.inference_pb2_grpc import InferenceAPIsServiceStub
from scheduler.rpc.plait_pb2_grpc import TaskServiceStub
from scheduler.task import Submission, TaskState
from tests.integration.gateway_system import (
    MAX_BODY_BYTES,
    NUM_WORDS_HELD,
    GatewaySystem,
    ended,
    first_task,
)

HOLD = json.dumps({"prompt": "hold", "max_new_tokens": 6}).encode()


@pytest_asyncio.fixture
async def channel(system: GatewaySystem) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(system.grpc_target) as opened:
        yield opened


@pytest.fixture
def inference(channel: Any) -> Any:
    return InferenceAPIsServiceStub(channel)


@pytest.fixture
def tasks(channel: Any) -> Any:
    return TaskServiceStub(channel)


def request(
    body: bytes, key: str = "data", model: str = "demo"
) -> inference_pb2.PredictionsRequest:
    return inference_pb2.PredictionsRequest(model_name=model, input={key: body})


async def submit(system: GatewaySystem, prompt: str, num_tokens: int, tenant: str = "t") -> str:
    document = {"prompt": prompt, "max_new_tokens": num_tokens}
    task, _ = await system.book.submit(Submission(tenant, "demo", document, 10))
    return task.id


def watch(task_id: str, cursor: int = 0, tenant: str = "t") -> plait_pb2.WatchRequest:
    return plait_pb2.WatchRequest(task_id=task_id, tenant=tenant, cursor=cursor)


# -- TorchServe's service


async def test_ping_says_healthy(inference: Any) -> None:
    assert (await inference.Ping(Empty())).health == "Healthy"


async def test_ping_is_unavailable_when_the_store_refuses(
    inference: Any, system: GatewaySystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse() -> dict[str, int]:
        raise StoreUnavailable("the disk is full")

    monkeypatch.setattr(system.book, "depth", refuse)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await inference.Ping(Empty())

    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("key", ["data", "body", "prompt"])
async def test_a_text_prediction_is_answered_in_text(inference: Any, key: str) -> None:
    answer = await inference.Predictions(request(b"a prompt", key))

    assert answer.prediction.startswith(b"w0 w1 w2 ")


async def test_a_json_prediction_is_answered_as_over_http(inference: Any) -> None:
    answer = await inference.Predictions(request(b'{"prompt": "x", "max_new_tokens": 2}'))

    document = json.loads(answer.prediction)
    assert (document["text"], document["finish_reason"]) == ("w0 w1 ", "length")


async def test_an_embedding_is_answered_as_json(inference: Any) -> None:
    answer = await inference.Predictions(request(b'{"input": ["ab"]}', model="encoder"))

    assert json.loads(answer.prediction)["embeddings"] == [[2.0, 0.5]]


async def test_a_streamed_text_prediction_is_pieces_of_text(inference: Any) -> None:
    parts = [part.prediction async for part in inference.StreamPredictions(request(b"x"))]

    assert parts[:3] == [b"w0 ", b"w1 ", b"w2 "]


async def test_a_streamed_json_prediction_is_lines(inference: Any) -> None:
    call = inference.StreamPredictions(request(b'{"prompt": "x", "max_new_tokens": 1}'))
    lines = [json.loads(part.prediction) async for part in call]

    assert lines[0] == {"seq": 0, "token_ids": [0], "text": "w0 "}
    assert lines[1]["finish_reason"] == "length"


async def test_the_tenant_comes_from_the_metadata(inference: Any, system: GatewaySystem) -> None:
    await inference.Predictions(request(b"x"), metadata=(("x-plait-tenant", "gold"),))

    assert (await first_task(system)).tenant == "gold"


@pytest.mark.parametrize(
    ("message", "code", "field"),
    [
        (request(b'{"prompt": 7}'), grpc.StatusCode.INVALID_ARGUMENT, "prompt"),
        (request(b'{"prompt": "x", "m": 1}'), grpc.StatusCode.INVALID_ARGUMENT, "m"),
        (request(b"caf\xe9"), grpc.StatusCode.INVALID_ARGUMENT, "prompt"),
        (request(b""), grpc.StatusCode.INVALID_ARGUMENT, "prompt"),
        (request(b"fail"), grpc.StatusCode.INVALID_ARGUMENT, "prompt"),
        (request(b"x", model="nobody"), grpc.StatusCode.NOT_FOUND, "model"),
        (request(b"x", model="asleep"), grpc.StatusCode.UNAVAILABLE, ""),
        (
            inference_pb2.PredictionsRequest(model_name="demo"),
            grpc.StatusCode.INVALID_ARGUMENT,
            "input",
        ),
        (
            inference_pb2.PredictionsRequest(model_name="demo", input={"a": b"x", "b": b"y"}),
            grpc.StatusCode.INVALID_ARGUMENT,
            "input",
        ),
        (
            inference_pb2.PredictionsRequest(
                model_name="demo", model_version="2.0", input={"data": b"x"}
            ),
            grpc.StatusCode.NOT_FOUND,
            "version",
        ),
    ],
    ids=lambda value: str(value)[:50].replace("\n", " "),
)
@pytest.mark.parametrize("method", ["Predictions", "StreamPredictions"])
async def test_a_refusal_has_a_status_and_names_the_field(
    inference: Any, method: str, message: Any, code: grpc.StatusCode, field: str
) -> None:
    call = getattr(inference, method)(message, timeout=5)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (call if method == "Predictions" else anext(aiter(call)))

    assert caught.value.code() is code, caught.value
    assert dict(caught.value.trailing_metadata())["x-plait-field"] == field
    assert field in (caught.value.details() or "")


async def test_a_body_over_the_limit_is_refused(inference: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await inference.Predictions(request(b"x" * (3 * MAX_BODY_BYTES)))

    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("method", ["Predictions", "StreamPredictions"])
async def test_a_call_that_is_cancelled_cancels_its_task_within_a_second(
    inference: Any, system: GatewaySystem, method: str
) -> None:
    call = getattr(inference, method)(request(HOLD))
    task = await first_task(system)
    await system.wait_for_words(task.id, NUM_WORDS_HELD)

    call.cancel()

    assert (await ended(system, task.id)).state is TaskState.CANCELLED


async def test_a_call_that_runs_out_of_time_cancels_its_task(
    inference: Any, system: GatewaySystem
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await inference.Predictions(request(HOLD), timeout=0.2)

    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    task = await first_task(system)
    assert (await ended(system, task.id)).state is TaskState.CANCELLED


# -- following tasks


async def seen(call: Any) -> tuple[list[int], dict[str, Any]]:
    """The cursors of the chunks of a watch, and the task it ended with."""
    cursors, task = [], {}
    async for event in call:
        if event.HasField("chunk"):
            cursors.append(event.cursor)
        else:
            task = json.loads(event.task_json)
    return cursors, task


@pytest.mark.parametrize(("cursor", "expected"), [(0, [1, 2, 3]), (2, [3]), (3, [])])
async def test_a_watch_of_a_task_that_ended_gives_what_follows_the_cursor(
    tasks: Any, system: GatewaySystem, cursor: int, expected: Iterable[int]
) -> None:
    task_id = await submit(system, "x", 3)
    await ended(system, task_id)

    cursors, task = await seen(tasks.Watch(watch(task_id, cursor)))

    assert cursors == expected
    assert task["state"] == "succeeded"
    assert task["result"]["finish_reason"] == "length"


async def test_a_watch_of_a_live_task_follows_it_to_its_end(
    tasks: Any, system: GatewaySystem
) -> None:
    task_id = await submit(system, "hold", 6)
    watching = asyncio.create_task(seen(tasks.Watch(watch(task_id))))
    await system.wait_for_words(task_id, NUM_WORDS_HELD)
    assert system.runner is not None
    system.runner.go_on.set()

    cursors, task = await watching

    assert cursors == [1, 2, 3, 4, 5, 6]
    assert task["state"] == "succeeded"


@pytest.mark.parametrize(
    ("cursor", "tenant", "code"),
    [
        (0, "other", grpc.StatusCode.NOT_FOUND),
        (0, "a b", grpc.StatusCode.INVALID_ARGUMENT),
        (99, "t", grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_a_watch_is_refused_with_a_status(
    tasks: Any, system: GatewaySystem, cursor: int, tenant: str, code: grpc.StatusCode
) -> None:
    task_id = await submit(system, "x", 2)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await seen(tasks.Watch(watch(task_id, cursor, tenant)))

    assert caught.value.code() is code


async def test_a_watch_that_is_cancelled_leaves_the_task_alone(
    tasks: Any, system: GatewaySystem
) -> None:
    task_id = await submit(system, "hold", 5)
    call = tasks.Watch(watch(task_id))
    await call.read()
    call.cancel()

    assert system.runner is not None
    system.runner.go_on.set()
    assert (await ended(system, task_id)).state is TaskState.SUCCEEDED


async def test_a_gateway_that_closes_tells_its_watchers_to_come_back(
    tasks: Any, system: GatewaySystem
) -> None:
    task_id = await submit(system, "hold", 5)
    watching = asyncio.create_task(seen(tasks.Watch(watch(task_id))))
    await system.wait_for_words(task_id, NUM_WORDS_HELD)

    system.front.close()

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await watching
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
