"""The HTTP gateway, as clients meet it: real sockets, a real task book, a played runner."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import pytest

from scheduler.task import TaskState
from tests.integration.gateway_system import NUM_WORDS_HELD, GatewaySystem, ended, first_task

HOLD = {"prompt": "hold on", "max_new_tokens": 6, "stream": True}


# -- predictions


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize("path", ["/predictions/demo", "/predictions/demo/1.0"])
async def test_a_json_prediction_is_answered_whole(
    http: aiohttp.ClientSession, method: str, path: str
) -> None:
    answer = await http.request(method, path, json={"prompt": "x", "max_new_tokens": 3})

    assert answer.status == 200
    assert answer.content_type == "application/json"
    document = await answer.json()
    assert document.pop("task_id") == answer.headers["X-Plait-Task-Id"]
    assert document == {
        "model": "demo",
        "text": "w0 w1 w2 ",
        "token_ids": [0, 1, 2],
        "finish_reason": "length",
        "usage": {"prompt_tokens": 2, "output_tokens": 3},
    }


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"a prompt", {"Content-Type": "text/plain"}),
        (b"a prompt", {"Content-Type": "application/octet-stream"}),
        (b"data=a+prompt", {"Content-Type": "application/x-www-form-urlencoded"}),
        (b"{ not json", {"Content-Type": "text/plain"}),
    ],
)
async def test_a_text_prediction_is_answered_in_text(
    http: aiohttp.ClientSession, system: GatewaySystem, body: bytes, headers: dict[str, str]
) -> None:
    answer = await http.post("/predictions/demo", data=body, headers=headers)

    assert answer.status == 200
    assert answer.content_type == "text/plain"
    assert (await answer.text()).startswith("w0 w1 ")
    prompt = (await first_task(system)).document["prompt"]
    assert prompt == ("{ not json" if body.startswith(b"{") else "a prompt")


async def test_a_body_without_content_type_is_json_when_it_is_an_object(
    http: aiohttp.ClientSession,
) -> None:
    body = b'{"prompt": "x", "max_new_tokens": 1}'
    answer = await http.post("/predictions/demo", data=body, skip_auto_headers=["Content-Type"])

    assert (await answer.json())["text"] == "w0 "


async def test_curls_own_content_type_does_not_hide_json(http: aiohttp.ClientSession) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    body = b'{"prompt": "x", "max_new_tokens": 1}'
    answer = await http.post("/predictions/demo", data=body, headers=headers)

    assert (await answer.json())["text"] == "w0 "


@pytest.mark.parametrize("is_file", [True, False])
async def test_a_multipart_field_named_data_is_the_prompt(
    http: aiohttp.ClientSession, system: GatewaySystem, is_file: bool
) -> None:
    form = aiohttp.FormData(default_to_multipart=True)
    form.add_field("data", "päivää", filename="prompt.txt" if is_file else None)
    answer = await http.post("/predictions/demo", data=form)

    assert answer.status == 200
    assert (await first_task(system)).document["prompt"] == "päivää"


async def test_an_urlencoded_prompt_keeps_its_characters(
    http: aiohttp.ClientSession, system: GatewaySystem
) -> None:
    answer = await http.post("/predictions/demo", data={"data": "ä=b&c %41"})

    assert answer.status == 200
    assert (await first_task(system)).document["prompt"] == "ä=b&c %41"


async def test_an_embedding_is_answered_as_json(http: aiohttp.ClientSession) -> None:
    answer = await http.post("/predictions/encoder", json={"input": ["a", "bcd"]})

    document = await answer.json()
    assert document["embeddings"] == [[1.0, 0.5], [3.0, 0.5]]
    assert document["num_input_tokens"] == 2


async def test_a_streamed_json_prediction_is_lines_with_an_end(http: aiohttp.ClientSession) -> None:
    body = {"prompt": "x", "max_new_tokens": 2, "stream": True}
    answer = await http.post("/predictions/demo", json=body)

    assert answer.content_type == "application/x-ndjson"
    assert [json.loads(line) for line in (await answer.text()).splitlines()] == [
        {"seq": 0, "token_ids": [0], "text": "w0 "},
        {"seq": 1, "token_ids": [1], "text": "w1 "},
        {"finish_reason": "length", "usage": {"prompt_tokens": 2, "output_tokens": 2}},
    ]


@pytest.mark.parametrize(
    ("path", "headers"),
    [("/predictions/demo?stream=true", {}), ("/predictions/demo", {"X-Plait-Stream": "true"})],
)
async def test_a_streamed_text_prediction_is_bare_text(
    http: aiohttp.ClientSession, path: str, headers: dict[str, str]
) -> None:
    headers = {"Content-Type": "text/plain", **headers}
    answer = await http.post(path, data=b"x", headers=headers)

    assert answer.headers["Transfer-Encoding"] == "chunked"
    assert (await answer.text()).startswith("w0 w1 w2 ")


async def test_who_accepts_events_gets_events(http: aiohttp.ClientSession) -> None:
    body, headers = {"prompt": "x", "max_new_tokens": 1}, {"Accept": "text/event-stream"}
    answer = await http.post("/predictions/demo", json=body, headers=headers)

    assert answer.content_type == "text/event-stream"
    frames = (await answer.text()).strip().split("\n\n")
    assert frames[0] == 'id: 1\nevent: chunk\ndata: {"seq":0,"token_ids":[0],"text":"w0 "}'
    assert frames[1].startswith('id: 1\nevent: end\ndata: {"finish_reason":"length"')


async def test_chunks_come_before_the_generation_is_over(
    http: aiohttp.ClientSession, system: GatewaySystem
) -> None:
    answer = await http.post("/predictions/demo", json=HOLD)

    lines = [json.loads(await answer.content.readline()) for _ in range(NUM_WORDS_HELD)]

    assert [line["seq"] for line in lines] == [0, 1, 2]
    assert system.runner is not None
    system.runner.go_on.set()
    rest = await answer.text()
    assert [json.loads(line).get("seq") for line in rest.splitlines()] == [3, 4, 5, None]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_request_the_model_refuses_gets_its_status(
    http: aiohttp.ClientSession, stream: bool
) -> None:
    body = {"prompt": "fail", "stream": stream}
    answer = await http.post("/predictions/demo", json=body)

    assert answer.status == 422
    assert await answer.json() == {
        "code": 422,
        "type": "InvalidRequest",
        "message": "prompt: is not to the model's liking",
        "field": "prompt",
    }


async def test_a_failure_in_mid_stream_is_the_last_line(http: aiohttp.ClientSession) -> None:
    body = {"prompt": "break", "max_new_tokens": 9, "stream": True}
    answer = await http.post("/predictions/demo", json=body)

    last = json.loads((await answer.text()).splitlines()[-1])
    assert last["error"]["code"] == 500
    assert last["error"]["message"] == "the replica broke"


async def test_a_failure_in_mid_text_cuts_the_stream(http: aiohttp.ClientSession) -> None:
    headers = {"Content-Type": "text/plain"}
    answer = await http.post("/predictions/demo?stream=true", data=b"break", headers=headers)

    with pytest.raises(aiohttp.ClientPayloadError):
        await answer.text()


# -- leaving


async def send(system: GatewaySystem, path: str, document: object) -> asyncio.StreamWriter:
    """Send a request and do not read the answer; closing the writer is how the client leaves."""
    _, writer = await asyncio.open_connection("127.0.0.1", system.http_port)
    body = json.dumps(document)
    head = f"POST {path} HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    await writer.drain()
    return writer


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_cancels_its_task_within_a_second(
    system: GatewaySystem, stream: bool
) -> None:
    client = await send(system, "/predictions/demo", {**HOLD, "stream": stream})
    task = await first_task(system)
    await system.wait_for_words(task.id, NUM_WORDS_HELD)

    client.close()

    assert (await ended(system, task.id)).state is TaskState.CANCELLED
    assert system.runner is not None
    assert system.runner.ended == [task.id]


async def test_a_client_that_leaves_while_its_task_is_queued_cancels_it() -> None:
    system = GatewaySystem(has_runner=False)
    await system.open()
    client = await send(system, "/predictions/demo", {"prompt": "x"})
    task = await first_task(system)

    client.close()

    assert (await ended(system, task.id)).state is TaskState.CANCELLED
    await system.close()


async def test_a_submitted_task_goes_on_when_its_follower_leaves(system: GatewaySystem) -> None:
    async with aiohttp.ClientSession(system.url) as leaving:
        body = {"model": "demo", "input": {"prompt": "hold", "max_new_tokens": 5}}
        task_id = (await (await leaving.post("/v1/tasks", json=body)).json())["task_id"]
        events = await leaving.get(f"/v1/tasks/{task_id}/events")
        await events.content.readline()
        events.close()

    assert system.runner is not None
    system.runner.go_on.set()
    assert (await ended(system, task_id, 5)).state is TaskState.SUCCEEDED


async def test_a_gateway_that_closes_lets_its_clients_tasks_go_on(
    system: GatewaySystem, http: aiohttp.ClientSession
) -> None:
    answer = await http.post("/predictions/demo", json=HOLD)
    await answer.content.readline()

    system.front.close()
    rest = await answer.text()

    assert "is closing" in json.loads(rest.splitlines()[-1])["error"]["message"]
    task = await system.book.task(answer.headers["X-Plait-Task-Id"])
    assert task.state is TaskState.LEASED


async def test_a_repeat_that_leaves_does_not_cancel_the_first_ones_task(
    system: GatewaySystem, http: aiohttp.ClientSession
) -> None:
    body = {**HOLD, "idempotency_key": "k"}
    first = await http.post("/predictions/demo", json=body)
    second = await http.post("/predictions/demo", json=body)
    assert first.headers["X-Plait-Task-Id"] == second.headers["X-Plait-Task-Id"]

    second.close()
    ping = await http.get("/ping")

    assert ping.status == 200
    assert system.runner is not None
    system.runner.go_on.set()
    assert (await first.text()).count("seq") == HOLD["max_new_tokens"]
