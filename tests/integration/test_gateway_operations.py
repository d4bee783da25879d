"""The task API and what operators ask and set, over HTTP."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from scheduler.errors import StoreUnavailable
from scheduler.gateway.http import open_http
from scheduler.scaling import Measure, ScaleDecision
from scheduler.stores.base import Transaction
from tests.integration.gateway_system import GatewaySystem, ended
from tests.waiting import until

HOLD = {"prompt": "hold on", "max_new_tokens": 6, "stream": True}


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
    await until(system.book.expire_overdue)

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
    node = (await (await http.get("/v1/nodes")).json())["nodes"][0]

    assert (node["node"], node["connected"], node["num_devices"]) == ("here", True, 2)
    assert node["replicas"][0]["device_ids"] == [0, 1]


async def test_replicas_are_set_and_shown(http: aiohttp.ClientSession) -> None:
    answer = await http.put("/v1/models/demo/replicas", json={"replicas": 3})

    assert (await answer.json())["desired_replicas"] == 3


async def test_work_for_a_model_that_scales_from_none_is_accepted(
    http: aiohttp.ClientSession,
) -> None:
    task = {"model": "elastic", "input": {"prompt": "x"}}

    waits = await http.post("/v1/tasks", json=task)
    await http.put("/v1/models/elastic/replicas", json={"replicas": 0})
    refused = await http.post("/v1/tasks", json=task)

    assert (waits.status, refused.status) == (202, 503)
    assert (await refused.json())["type"] == "NoReplicas"


async def test_a_number_of_replicas_is_given_back(http: aiohttp.ClientSession) -> None:
    await http.put("/v1/models/demo/replicas", json={"replicas": 3})

    answer = await http.delete("/v1/models/demo/replicas")

    assert (answer.status, (await answer.json())["desired_replicas"]) == (200, 1)


async def test_why_so_many_replicas_run_is_told(
    http: aiohttp.ClientSession, system: GatewaySystem
) -> None:
    def command(tx: Transaction) -> None:
        tx.put_scaled_replicas("elastic", 1)
        tx.put_measure(Measure("elastic", "cpu", 12.5, True, 0.5, 0.75, (20.0, 30.0)))
        for number in (1, 2):
            at = float(number)
            decision = ScaleDecision(
                "elastic",
                number,
                at,
                at,
                1,
                "up",
                number - 1,
                number,
                "queue",
                "it waits",
                {"a": 1},
            )
            tx.put_scale_decision(decision)

    assert system.book is not None
    await system.book.ledger.store.run(command)

    told = await (await http.get("/v1/models/elastic/scale?limit=1")).json()
    fixed = await (await http.get("/v1/models/demo/scale")).json()

    assert (told["desired_replicas"], told["decided_by"], told["rule"]["max"]) == (1, "work", 2)
    assert told["measures"] == [
        {
            "device_kind": "cpu",
            "cost_per_slot": 12.5,
            "was_full": True,
            "first_chunk_s": 0.5,
            "used_ratio": 0.75,
            "start_s": 30.0,
            "num_starts": 2,
        }
    ]
    (decision,) = told["decisions"]
    assert (decision["number"], decision["num_after"], decision["inputs"]) == (2, 2, {"a": 1})
    assert (fixed["decided_by"], fixed["rule"], fixed["decisions"]) == ("config", None, [])


@pytest.mark.parametrize("query", ["limit=0", "limit=501", "limit=x", "page=2"])
async def test_a_story_is_refused_with_a_query_that_is_not_its_own(
    http: aiohttp.ClientSession, query: str
) -> None:
    assert (await http.get(f"/v1/models/demo/scale?{query}")).status == 422


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
