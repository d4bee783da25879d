"""The HTTP gateway, as clients meet it: real sockets, a real task book, a played runner."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from scheduler.errors import StoreUnavailable
from scheduler.gateway.http import open_http
from scheduler.task import Task, TaskState
from tests.integration.gateway_system import NUM_WORDS_HELD, GatewaySystem

HOLD = {"prompt": "hold on", "max_new_tokens": 6, "stream": True}


@pytest_asyncio.fixture
async def system() -> AsyncIterator[GatewaySystem]:
    running = GatewaySystem()
    await running.open()
    yield running
    assert running.runner is not None
    await running.runner.close()
    await running.close()


@pytest_asyncio.fixture
async def http(system: GatewaySystem) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(system.url) as session:
        yield session


async def ended(system: GatewaySystem, task_id: str, within_s: float = 1.0) -> Task:
    """The task once it is final; TimeoutError when it is not in time."""
    async with asyncio.timeout(within_s):
        while not (task := await system.book.task(task_id)).state.is_final:
            await asyncio.sleep(0.005)
    return task


async def first_task(system: GatewaySystem) -> Task:
    async with asyncio.timeout(5):
        while not (tasks := await system.book.tasks()):
            await asyncio.sleep(0.005)
    return tasks[0]


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


# -- tasks


async def submitted(http: aiohttp.ClientSession, tenant: str = "default", **fields: Any) -> str:
    body = {"model": "demo", "input": {"prompt": "x", "max_new_tokens": 2}, **fields}
    answer = await http.post("/v1/tasks", json=body, headers={"X-Plait-Tenant": tenant})
    assert answer.status == 202, await answer.text()
    return str((await answer.json())["task_id"])


async def test_a_task_is_accepted_and_can_be_looked_up(
    http: aiohttp.ClientSession, system: GatewaySystem
) -> None:
    body = {"model": "demo", "input": {"prompt": "x", "max_new_tokens": 2}, "priority": 3}
    answer = await http.post("/v1/tasks", json=body)
    assert answer.status == 202
    location = answer.headers["Location"]
    await ended(system, (await answer.json())["task_id"])

    task = await (await http.get(location)).json()

    assert task["state"] == "succeeded"
    assert task["priority"] == 3
    assert task["output"] == {"text": "w0 w1 ", "token_ids": [0, 1]}
    assert task["result"]["finish_reason"] == "length"
    assert task["attempts"][0]["outcome"] == "succeeded"
    assert isinstance(task["input"]["seed"], int)


async def test_a_repeat_under_one_key_is_the_same_task(http: aiohttp.ClientSession) -> None:
    first = await submitted(http, idempotency_key="k")

    body = {"model": "demo", "input": {"prompt": "x", "max_new_tokens": 2}}
    again = await http.post("/v1/tasks", json=body, headers={"Idempotency-Key": "k"})

    assert (await again.json())["task_id"] == first


async def test_a_key_used_for_another_request_conflicts(http: aiohttp.ClientSession) -> None:
    await submitted(http, idempotency_key="k")

    body = {"model": "demo", "input": {"prompt": "y"}, "idempotency_key": "k"}
    answer = await http.post("/v1/tasks", json=body)

    assert answer.status == 409
    assert (await answer.json())["type"] == "IdempotencyConflict"


async def test_tenants_do_not_see_one_anothers_tasks(http: aiohttp.ClientSession) -> None:
    task_id = await submitted(http, "mine")
    other = {"X-Plait-Tenant": "other"}

    answers = [
        await http.get(f"/v1/tasks/{task_id}", headers=other),
        await http.get(f"/v1/tasks/{task_id}/events", headers=other),
        await http.delete(f"/v1/tasks/{task_id}", headers=other),
    ]

    assert [answer.status for answer in answers] == [404, 404, 404]
    listing = await (await http.get("/v1/tasks", headers=other)).json()
    assert listing == {"tasks": []}


async def test_the_list_comes_in_pages_newest_first(http: aiohttp.ClientSession) -> None:
    ids = [await submitted(http) for _ in range(3)]

    page = await (await http.get("/v1/tasks?limit=2")).json()
    rest = await (await http.get(f"/v1/tasks?before={ids[1]}")).json()

    assert [task["task_id"] for task in page["tasks"]] == [ids[2], ids[1]]
    assert [task["task_id"] for task in rest["tasks"]] == [ids[0]]


@pytest.mark.parametrize(
    ("method", "suffix"), [("DELETE", ""), ("POST", "/cancel")], ids=["delete", "post"]
)
async def test_a_cancelled_task_stays_cancelled(
    http: aiohttp.ClientSession, method: str, suffix: str
) -> None:
    task_id = await submitted(http, input={"prompt": "hold", "max_new_tokens": 9})

    for _ in range(2):
        answer = await http.request(method, f"/v1/tasks/{task_id}{suffix}")
        assert (await answer.json())["state"] == "cancelled"


@pytest.mark.parametrize("by_header", [True, False])
async def test_events_begin_at_the_cursor(
    http: aiohttp.ClientSession, system: GatewaySystem, by_header: bool
) -> None:
    task_id = await submitted(http, input={"prompt": "x", "max_new_tokens": 4})
    await ended(system, task_id)
    path = f"/v1/tasks/{task_id}/events"
    headers = {"Last-Event-ID": "2"} if by_header else {}
    answer = await http.get(path if by_header else f"{path}?cursor=2", headers=headers)

    frames = (await answer.text()).strip().split("\n\n")

    chunks = [json.loads(f.split("data: ")[1]) for f in frames if "event: chunk" in f]
    assert [chunk["seq"] for chunk in chunks] == [2, 3]
    assert "event: end" in frames[-1]
    assert json.loads(frames[-1].split("data: ")[1])["state"] == "succeeded"


async def test_a_silent_follower_hears_that_the_stream_lives(
    http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scheduler.gateway.tasks_api.HEARTBEAT_S", 0.05)
    task_id = await submitted(http, input={"prompt": "hold", "max_new_tokens": 9})
    answer = await http.get(f"/v1/tasks/{task_id}/events")

    async for line in answer.content:
        if line == b": alive\n":
            break
    else:
        pytest.fail("the stream ended")
    answer.close()


async def test_a_task_past_its_deadline_is_told_as_504(
    http: aiohttp.ClientSession, system: GatewaySystem
) -> None:
    body = {"prompt": "hold", "max_new_tokens": 9, "deadline_s": 0.05}
    request = asyncio.create_task(http.post("/predictions/demo", json=body))
    async with asyncio.timeout(5):
        while not await system.book.sweep():
            await asyncio.sleep(0.01)

    answer = await request

    assert answer.status == 504
    assert (await answer.json())["type"] == "DeadlineExceeded"


# -- operating


async def test_ping_tells_whether_the_store_answers(
    http: aiohttp.ClientSession, system: GatewaySystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    healthy = await http.get("/ping")

    async def refuse() -> dict[str, int]:
        raise StoreUnavailable("the disk is full")

    monkeypatch.setattr(system.book, "depth", refuse)
    sick = await http.get("/ping")

    assert (healthy.status, await healthy.json()) == (200, {"status": "Healthy"})
    assert (sick.status, await sick.json()) == (503, {"status": "Unhealthy"})


async def test_a_store_that_refuses_is_a_503_with_retry_after(
    http: aiohttp.ClientSession, system: GatewaySystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(submission: object) -> None:
        raise StoreUnavailable("the disk is full")

    monkeypatch.setattr(system.book, "submit", refuse)
    answer = await http.post("/predictions/demo", json={"prompt": "x"})

    assert answer.status == 503
    assert int(answer.headers["Retry-After"]) > 0
    assert (await answer.json())["message"] == "the disk is full"


async def test_an_unforeseen_error_is_a_500_that_tells_nothing(
    http: aiohttp.ClientSession, system: GatewaySystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def break_down(submission: object) -> None:
        raise KeyError("secret")

    monkeypatch.setattr(system.book, "submit", break_down)
    answer = await http.post("/predictions/demo", json={"prompt": "x"})

    assert answer.status == 500
    assert "secret" not in await answer.text()


async def test_a_model_without_desired_replicas_is_a_503(http: aiohttp.ClientSession) -> None:
    answer = await http.post("/predictions/asleep", json={"prompt": "x"})

    assert answer.status == 503
    assert (await answer.json())["type"] == "NoReplicas"
    await http.put("/v1/models/asleep/replicas", json={"replicas": 1})
    again = await http.post("/v1/tasks", json={"model": "asleep", "input": {"prompt": "x"}})
    assert again.status == 202


async def test_it_is_ready_once_each_wanted_model_has_a_replica(
    http: aiohttp.ClientSession, system: GatewaySystem
) -> None:
    system.cluster.state = "starting"
    before = await http.get("/ready")
    system.cluster.state = "ready"
    after = await http.get("/ready")

    assert (before.status, after.status) == (503, 200)
    assert (await before.json())["waiting_for"] == ["demo", "encoder"]


async def test_models_show_their_replicas(http: aiohttp.ClientSession) -> None:
    listing = (await (await http.get("/v1/models")).json())["models"]

    demo = next(model for model in listing if model["name"] == "demo")
    assert (demo["task"], demo["max_context"], demo["num_stages"]) == ("generate", 1024, 2)
    assert demo["replicas"][0]["state"] == "ready"
    assert demo["replicas"][0]["node"] == "here"


async def test_workers_show_their_devices(http: aiohttp.ClientSession) -> None:
    node = (await (await http.get("/v1/workers")).json())["nodes"][0]

    assert (node["node"], node["connected"], node["num_devices"]) == ("here", True, 2)
    assert node["replicas"][0]["device_ids"] == [0, 1]


async def test_replicas_are_set_and_shown(http: aiohttp.ClientSession) -> None:
    answer = await http.put("/v1/models/demo/replicas", json={"replicas": 3})

    assert (await answer.json())["desired_replicas"] == 3


async def test_weights_are_set_and_shown(
    http: aiohttp.ClientSession, system: GatewaySystem
) -> None:
    path = "/v1/tenants/gold/weight"
    await http.put(path, json={"weight": 3.0})
    await ended(system, await submitted(http, "gold"))

    weight = await (await http.get(path)).json()
    tenants = (await (await http.get("/v1/tenants")).json())["tenants"]

    assert weight == {"tenant": "gold", "weight": 3.0}
    gold = next(tenant for tenant in tenants if tenant["tenant"] == "gold")
    assert gold["served_cost"]["demo"] > 0


async def test_a_request_id_comes_back(http: aiohttp.ClientSession) -> None:
    given = await http.get("/ping", headers={"X-Request-Id": "abc-1"})
    made = await http.get("/nowhere")

    assert given.headers["X-Request-Id"] == "abc-1"
    assert made.headers["X-Request-Id"]


async def test_a_port_that_is_taken_is_an_error_and_leaves_nothing_open(
    system: GatewaySystem,
) -> None:
    with pytest.raises(OSError, match=str(system.http_port)):
        await open_http(system.front, "127.0.0.1", system.http_port, 1024)
