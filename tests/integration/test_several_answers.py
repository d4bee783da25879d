"""Several answers, log probabilities and labels, from the client through the gateway and back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import grpc
import pytest

from handlers.wire import TokenLogprob
from scheduler.client import Chunk, Client
from scheduler.rpc import plait_pb2 as pb
from scheduler.rpc.logprobs import from_messages
from scheduler.rpc.plait_pb2_grpc import TaskServiceStub
from tests.integration.gateway_system import GatewaySystem
from tests.waiting import until

TWO = {"prompt": "x", "max_new_tokens": 2, "n": 2}
LIKELY = {"logprob": -0.5, "top": [[0, -0.5]]}


async def submitted(http: aiohttp.ClientSession, **fields: Any) -> dict[str, Any]:
    body = {"model": "demo", "input": {"prompt": "x", "max_new_tokens": 2, **fields}}
    answer = await http.post("/v1/tasks", json=body)
    document: dict[str, Any] = await answer.json()
    assert answer.status == 202, document
    return document


async def test_a_prediction_has_its_answers_side_by_side(http: aiohttp.ClientSession) -> None:
    answer = await (await http.post("/predictions/demo", json=TWO)).json()

    assert answer["choices"] == [
        {"index": i, "text": f"{i}w0 {i}w1 ", "token_ids": [0, 1], "finish_reason": "length"}
        for i in range(2)
    ]
    assert answer["usage"] == {"prompt_tokens": 2, "output_tokens": 4}
    assert "text" not in answer


async def test_lines_say_which_answer_goes_on(http: aiohttp.ClientSession) -> None:
    answer = await http.post("/predictions/demo", json={**TWO, "stream": True})

    *chunks, end = [json.loads(line) for line in (await answer.text()).splitlines()]

    assert [chunk.get("index", 0) for chunk in chunks] == [0, 1, 0, 1]
    assert end["finish_reasons"] == ["length", "length"]


async def test_events_carry_log_probabilities(http: aiohttp.ClientSession) -> None:
    headers = {"Accept": "text/event-stream"}
    body = {"prompt": "x", "max_new_tokens": 1, "logprobs": 1}
    answer = await http.post("/predictions/demo", json=body, headers=headers)

    first = (await answer.text()).split("data: ")[1].split("\n")[0]

    assert json.loads(first) == {"seq": 0, "token_ids": [0], "text": "0w0 ", "logprobs": [LIKELY]}


async def test_a_task_shows_its_answers_and_what_a_lost_attempt_is_worth(
    http: aiohttp.ClientSession, system: GatewaySystem
) -> None:
    task = await submitted(http, n=2, logprobs=1)
    assert task["resume"] == "close"
    await http.get(f"/v1/tasks/{task['task_id']}/events")

    async def show() -> Any:
        return await (await http.get(f"/v1/tasks/{task['task_id']}")).json()

    shown = await until(show, lambda shown: shown["state"] == "succeeded")

    assert [choice["text"] for choice in shown["output"]["choices"]] == ["0w0 0w1 ", "1w0 1w1 "]
    assert shown["output"]["choices"][1]["logprobs"][0] == LIKELY
    assert shown["result"]["finish_reasons"] == ["length", "length"]
    assert shown["num_tokens"] == 4
    assert shown["charged_cost"] == shown["estimated_cost"]


async def test_a_watcher_gets_answers_and_log_probabilities(
    http: aiohttp.ClientSession, system: GatewaySystem
) -> None:
    task = await submitted(http, n=2, logprobs=1)

    async with grpc.aio.insecure_channel(system.grpc_target) as channel:
        request = pb.WatchRequest(task_id=task["task_id"], tenant="default")
        events = [event async for event in TaskServiceStub(channel).Watch(request)]

    chunks = [event.chunk for event in events if event.HasField("chunk")]
    assert [chunk.index for chunk in chunks] == [0, 1, 0, 1]
    assert from_messages(chunks[0].logprobs) == (TokenLogprob(-0.5, ((0, -0.5),)),)


@pytest.fixture
async def client(system: GatewaySystem) -> AsyncIterator[Client]:
    opened = Client(system.url, system.grpc_target, patience_s=10)
    yield opened
    await asyncio.to_thread(opened.close)


async def test_the_client_reads_one_answer_or_all(client: Client) -> None:
    def read() -> tuple[str, list[Chunk]]:
        task_id = client.submit("demo", {**TWO, "logprobs": 1})["task_id"]
        events = list(client.watch(task_id))
        chunks = [event for event in events if isinstance(event, Chunk)]
        return "".join(client.stream(task_id, index=1)), chunks

    second, chunks = await asyncio.to_thread(read)

    assert second == "1w0 1w1 "
    assert [(chunk.index, chunk.logprobs[0].logprob) for chunk in chunks][:2] == [
        (0, -0.5),
        (1, -0.5),
    ]


async def test_a_generation_as_one_text_refuses_several(client: Client) -> None:
    with pytest.raises(ValueError, match="n is 2"):
        client.generate("x", n=2)


async def test_texts_are_labelled(http: aiohttp.ClientSession, system: GatewaySystem) -> None:
    await system.front.operations.set_desired_replicas("labeller", 1)

    answer = await (await http.post("/predictions/labeller", json={"input": ["a", "b"]})).json()

    assert answer["labels"] == ["good", "good"]
    assert answer["scores"][1] == {"good": 0.75, "bad": 0.25}


async def test_a_bare_text_is_labelled(http: aiohttp.ClientSession, system: GatewaySystem) -> None:
    await system.front.operations.set_desired_replicas("labeller", 1)
    headers = {"Content-Type": "text/plain"}

    answer = await http.post("/predictions/labeller", data=b"so good", headers=headers)

    assert (await answer.json())["labels"] == ["good"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [({"n": 17}, "n"), ({"logprobs": -1}, "logprobs"), ({"json_schema": 3}, "json_schema")],
)
async def test_a_wrong_field_is_refused_at_the_door(
    http: aiohttp.ClientSession, fields: dict[str, Any], field: str
) -> None:
    answer = await http.post("/predictions/demo", json={"prompt": "x", **fields})

    assert answer.status == 422
    assert (await answer.json())["field"] == field
