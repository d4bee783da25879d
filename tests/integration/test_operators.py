"""What operators see and set, over HTTP: tenants, keys, classes, cost factors, what is kept."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import grpc
import pytest
import pytest_asyncio
import structlog
from google.protobuf.empty_pb2 import Empty

from scheduler.gateway.keyring import REMEMBERED_S
from scheduler.keys import Role
from scheduler.rpc import inference_pb2
from scheduler.rpc import plait_pb2 as pb
from scheduler.rpc.inference_pb2_grpc import InferenceAPIsServiceStub
from scheduler.rpc.plait_pb2_grpc import TaskServiceStub
from tests.integration.gateway_system import GatewaySystem, ended

INPUT = {"prompt": "x", "max_new_tokens": 2}


def shown(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def answered(answer: aiohttp.ClientResponse) -> Any:
    assert answer.status < 300, await answer.text()
    return await answer.json()


# -- tenants


async def test_a_tenant_s_quotas_are_set_and_shown(http: aiohttp.ClientSession) -> None:
    quotas = {"weight": 2.5, "max_queued": 9, "max_in_flight": 3, "cost_per_minute": 1000}

    told = await answered(
        await http.patch("/v1/tenants/red", json={**quotas, "classes": ["batch"]})
    )

    expected = {**quotas, "tenant": "red", "classes": ["batch"], "queued": 0, "in_flight": 0}
    assert told == {**expected, "served_cost": {}}
    assert await answered(await http.get("/v1/tenants/red")) == told
    assert (await answered(await http.get("/v1/tenants")))["tenants"] == [told]


async def test_null_removes_a_limit_and_leaves_the_others(http: aiohttp.ClientSession) -> None:
    await http.patch("/v1/tenants/red", json={"max_queued": 9, "max_in_flight": 3})

    told = await answered(await http.patch("/v1/tenants/red", json={"max_queued": None}))

    assert (told["max_queued"], told["max_in_flight"]) == (None, 3)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "body"),
        ({"max_queue": 1}, "max_queue"),
        ({"max_queued": 0}, "max_queued"),
        ({"max_queued": True}, "max_queued"),
        ({"max_in_flight": 1.5}, "max_in_flight"),
        ({"cost_per_minute": "1"}, "cost_per_minute"),
        ({"weight": 0}, "weight"),
        ({"weight": None}, "weight"),
        ({"classes": []}, "classes"),
        ({"classes": "batch"}, "classes"),
        ({"classes": ["gold"]}, "classes"),
        ({"classes": ["no name"]}, "class"),
    ],
    ids=str,
)
async def test_a_wrong_quota_is_named(
    http: aiohttp.ClientSession, body: dict[str, Any], field: str
) -> None:
    answer = await http.patch("/v1/tenants/red", json=body)

    assert (answer.status, (await answer.json())["field"]) == (422, field)


# -- classes and device kinds


async def test_classes_are_listed_and_set(http: aiohttp.ClientSession) -> None:
    await answered(await http.put("/v1/classes/gold", json={"weight": 8}))

    listed = (await answered(await http.get("/v1/classes")))["classes"]

    assert listed == [
        {"class": "interactive", "weight": 16.0},
        {"class": "gold", "weight": 8.0},
        {"class": "standard", "weight": 4.0},
        {"class": "batch", "weight": 1.0},
    ]


async def test_cost_factors_are_listed_and_set(http: aiohttp.ClientSession) -> None:
    body = {"device_kind": "NVIDIA H100 80GB HBM3", "factor": 0.25}

    told = await answered(await http.put("/v1/cost-factors/demo", json=body))

    assert told == {"model": "demo", **body}
    assert (await answered(await http.get("/v1/cost-factors")))["cost_factors"] == [told]


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("/v1/classes/No", {"weight": 1}, 422, "class"),
        ("/v1/classes/gold", {"weight": 0}, 422, "weight"),
        ("/v1/classes/gold", {}, 422, "weight"),
        ("/v1/cost-factors/none", {"device_kind": "cpu", "factor": 1}, 404, "model"),
        ("/v1/cost-factors/demo", {"device_kind": "", "factor": 1}, 422, "device_kind"),
        ("/v1/cost-factors/demo", {"device_kind": "cpu", "factor": "1"}, 422, "factor"),
    ],
    ids=str,
)
async def test_a_wrong_class_or_factor_is_named(
    http: aiohttp.ClientSession, path: str, body: dict[str, Any], status: int, field: str
) -> None:
    answer = await http.put(path, json=body)

    assert (answer.status, (await answer.json())["field"]) == (status, field)


# -- what is kept


async def test_a_purge_removes_what_has_ended_and_nothing_else(
    http: aiohttp.ClientSession, system: GatewaySystem
) -> None:
    done = await answered(await http.post("/v1/tasks", json={"model": "demo", "input": INPUT}))
    await ended(system, done["task_id"])
    hold = {"prompt": "hold", "max_new_tokens": 6}
    running = await answered(await http.post("/v1/tasks", json={"model": "demo", "input": hold}))

    recent = await answered(await http.post("/v1/purge", json={"finished_before_s": 3600}))
    all_ended = await answered(await http.post("/v1/purge", json={"finished_before_s": 0}))

    assert (recent, all_ended) == ({"num_removed": 0}, {"num_removed": 1})
    listed = await answered(await http.get("/v1/tasks"))
    assert [task["task_id"] for task in listed["tasks"]] == [running["task_id"]]


@pytest.mark.parametrize("given", [-1, "1", None, True, 1e12])
async def test_a_purge_without_a_sound_age_is_refused(
    http: aiohttp.ClientSession, given: Any
) -> None:
    answer = await http.post("/v1/purge", json={"finished_before_s": given})

    assert (answer.status, (await answer.json())["field"]) == (422, "finished_before_s")


# -- keys


async def test_a_key_is_shown_once(http: aiohttp.ClientSession) -> None:
    body = {"tenant": "red", "name": "ci"}
    answer = await http.post("/v1/keys", json=body)
    made = await answer.json()

    listed = (await answered(await http.get("/v1/keys?tenant=red")))["keys"]

    assert answer.status == 201
    assert made.pop("key").startswith(f"plait_{made['key_id']}_")
    assert (listed, made["role"], made["revoked_at"]) == ([made], "tenant", None)
    assert (await answered(await http.get("/v1/keys?tenant=blue")))["keys"] == []


async def test_a_key_decides_the_tenant(http: aiohttp.ClientSession, system: GatewaySystem) -> None:
    _, key = await system.operations.create_key("red")

    body = {"model": "demo", "input": INPUT}
    task = await answered(await http.post("/v1/tasks", json=body, headers=shown(key)))

    assert task["tenant"] == "red"


async def test_a_tenant_s_key_does_not_speak_for_another(
    http: aiohttp.ClientSession, system: GatewaySystem
) -> None:
    _, key = await system.operations.create_key("red")

    answer = await http.get("/v1/tasks", headers={**shown(key), "X-Plait-Tenant": "blue"})

    assert answer.status == 403
    problem = await answer.json()
    assert (problem["type"], problem["field"]) == ("NotPermitted", "X-Plait-Tenant")


async def test_an_operator_s_key_speaks_for_every_tenant(
    http: aiohttp.ClientSession, system: GatewaySystem
) -> None:
    _, key = await system.operations.create_key("ops", Role.OPERATOR)

    body = {"model": "demo", "input": INPUT}
    headers = {**shown(key), "X-Plait-Tenant": "blue"}
    task = await answered(await http.post("/v1/tasks", json=body, headers=headers))

    assert task["tenant"] == "blue"


@pytest.mark.parametrize("text", ["plait_", "plait_abcdefghijkl_" + "x" * 43, "plait_x_y"])
async def test_what_looks_like_a_key_and_is_none_is_refused(
    http: aiohttp.ClientSession, text: str
) -> None:
    answer = await http.get("/v1/tasks", headers=shown(text))

    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert text not in await answer.text()


async def test_what_is_no_key_of_plait_s_is_left_to_others(http: aiohttp.ClientSession) -> None:
    answers = [
        await http.get("/v1/tasks", headers={"Authorization": "Basic dTpw"}),
        await http.get("/v1/tasks", headers={"Authorization": "Bearer somebody-else-s"}),
    ]

    assert [answer.status for answer in answers] == [200, 200]


async def test_no_log_holds_a_key(http: aiohttp.ClientSession, system: GatewaySystem) -> None:
    with structlog.testing.capture_logs() as logged:
        made = await answered(await http.post("/v1/keys", json={"tenant": "red"}))
        wrong = made["key"][:-1] + ("a" if made["key"][-1] != "a" else "b")
        await http.get("/v1/tasks", headers=shown(made["key"]))
        await http.get("/v1/tasks", headers=shown(wrong))
        # An error that nobody foresaw is logged with all there is to say about it.
        system.front.models = None
        broken = await http.get("/v1/models", headers=shown(made["key"]))

    assert broken.status == 500
    assert [entry["event"] for entry in logged] == ["request_failed"]
    assert made["key"] not in str(logged)
    assert wrong not in str(logged)


async def test_a_revoked_key_stops_working(
    http: aiohttp.ClientSession, system: GatewaySystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, text = await system.operations.create_key("red")
    assert (await http.get("/v1/tasks", headers=shown(text))).status == 200
    await answered(await http.delete(f"/v1/keys/{key.id}"))
    # As if the second had passed for which it is remembered.
    later = system.front.keyring._clock.monotonic() + REMEMBERED_S
    monkeypatch.setattr(system.front.keyring._clock, "monotonic", lambda: later)

    assert (await http.get("/v1/tasks", headers=shown(text))).status == 401


async def test_a_rotated_key_gives_way_to_its_successor(
    http: aiohttp.ClientSession, system: GatewaySystem
) -> None:
    old, written = await system.operations.create_key("red", name="ci")

    made = await answered(await http.post(f"/v1/keys/{old.id}/rotate"))

    assert (made["tenant"], made["name"]) == ("red", "ci")
    assert (await http.get("/v1/tasks", headers=shown(made["key"]))).status == 200
    assert (await http.get("/v1/tasks", headers=shown(written))).status == 401
    assert (await http.post(f"/v1/keys/{old.id}/rotate")).status == 404


async def test_a_key_that_is_not_there_cannot_be_revoked(http: aiohttp.ClientSession) -> None:
    answer = await http.delete("/v1/keys/none")

    assert (answer.status, (await answer.json())["type"]) == (404, "KeyNotFound")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "tenant"),
        ({"tenant": "no tenant"}, "tenant"),
        ({"tenant": "red", "role": "king"}, "role"),
        ({"tenant": "red", "role": ["operator"]}, "role"),
        ({"tenant": "red", "name": "x" * 101}, "name"),
        ({"tenant": "red", "name": "a\nb"}, "name"),
    ],
    ids=str,
)
async def test_a_wrong_key_is_not_made(
    http: aiohttp.ClientSession, body: dict[str, Any], field: str
) -> None:
    answer = await http.post("/v1/keys", json=body)

    assert (answer.status, (await answer.json())["field"]) == (422, field)


async def test_grpc_takes_the_tenant_from_the_key(system: GatewaySystem) -> None:
    _, key = await system.operations.create_key("red")
    request = pb.SubmitRequest(model="demo", input_json='{"prompt": "x"}')
    async with grpc.aio.insecure_channel(system.grpc_target) as channel:
        stub = TaskServiceStub(channel)
        reply = await stub.Submit(request, metadata=(("authorization", f"Bearer {key}"),))
        request.tenant = "blue"
        with pytest.raises(grpc.aio.AioRpcError) as other:
            await stub.Submit(request, metadata=(("authorization", f"Bearer {key}"),))
        with pytest.raises(grpc.aio.AioRpcError) as wrong:
            await stub.Submit(request, metadata=(("authorization", "Bearer plait_x"),))

    assert '"tenant":"red"' in reply.task_json
    assert other.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert wrong.value.code() is grpc.StatusCode.UNAUTHENTICATED


# -- where keys are required


@pytest_asyncio.fixture
async def locked() -> AsyncIterator[GatewaySystem]:
    running = GatewaySystem(has_runner=False)
    running.require_keys = True
    await running.open()
    yield running
    await running.close()


async def test_without_a_key_only_health_is_told(locked: GatewaySystem) -> None:
    async with aiohttp.ClientSession(locked.url) as http:
        paths = ("/ping", "/ready", "/v1/tasks", "/v1/models", "/v1/tenants", "/nowhere")
        statuses = [(await http.get(path)).status for path in paths]

    assert statuses == [200, 200, 401, 401, 401, 401]


OPERATORS_PATHS = [
    ("GET", "/v1/tasks?all=true"),
    ("GET", "/v1/nodes"),
    ("PUT", "/v1/models/demo/replicas"),
    ("GET", "/v1/tenants"),
    ("GET", "/v1/tenants/blue"),
    ("PATCH", "/v1/tenants/red"),
    ("GET", "/v1/tenants/blue/weight"),
    ("PUT", "/v1/tenants/red/weight"),
    ("GET", "/v1/keys"),
    ("POST", "/v1/keys"),
    ("DELETE", "/v1/keys/x"),
    ("POST", "/v1/keys/x/rotate"),
    ("PUT", "/v1/classes/gold"),
    ("GET", "/v1/cost-factors"),
    ("PUT", "/v1/cost-factors/demo"),
    ("POST", "/v1/purge"),
]


@pytest.mark.parametrize(("method", "path"), OPERATORS_PATHS, ids=" ".join)
async def test_a_tenant_s_key_opens_no_path_of_operators(
    locked: GatewaySystem, method: str, path: str
) -> None:
    _, key = await locked.operations.create_key("red")
    async with aiohttp.ClientSession(locked.url, headers=shown(key)) as http:
        answer = await http.request(method, path)

    assert answer.status == 403


async def test_a_tenant_s_key_opens_what_is_its_own(locked: GatewaySystem) -> None:
    _, key = await locked.operations.create_key("red")
    async with aiohttp.ClientSession(locked.url, headers=shown(key)) as http:
        paths = ("/v1/tasks", "/v1/models", "/v1/classes", "/v1/tenants/red")
        statuses = [(await http.get(path)).status for path in paths]

    assert statuses == [200, 200, 200, 200]


async def test_an_operator_s_key_opens_all(locked: GatewaySystem) -> None:
    _, key = await locked.operations.create_key("ops", Role.OPERATOR)
    async with aiohttp.ClientSession(locked.url, headers=shown(key)) as http:
        statuses = [(await http.get(path)).status for m, path in OPERATORS_PATHS if m == "GET"]

    assert set(statuses) == {200}


async def test_grpc_needs_a_key_too(locked: GatewaySystem) -> None:
    unknown = inference_pb2.PredictionsRequest(model_name="none")
    async with grpc.aio.insecure_channel(locked.grpc_target) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as listing:
            await TaskServiceStub(channel).List(pb.ListRequest())
        # Who is nobody is not even told which models there are.
        with pytest.raises(grpc.aio.AioRpcError) as prediction:
            await InferenceAPIsServiceStub(channel).Predictions(unknown)
        health = await InferenceAPIsServiceStub(channel).Ping(Empty())

    assert listing.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert prediction.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert health.health == "Healthy"
