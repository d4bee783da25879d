"""Whatever is wrong with a request, its client is told what, at once, and nobody else notices."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.integration.gateway_system import MAX_BODY_BYTES, GatewaySystem

JSON = {"Content-Type": "application/json"}
TEXT = {"Content-Type": "text/plain"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
OK = b'{"prompt": "x"}'


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system() -> AsyncIterator[GatewaySystem]:
    running = GatewaySystem()
    await running.open()
    yield running
    assert running.runner is not None
    await running.runner.close()
    await running.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(system: GatewaySystem) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(system.url) as session:
        yield session


def predict(*, status: int = 422, field: str, **fields: Any) -> Any:
    """A prediction with these fields beside a prompt."""
    body = json.dumps({"prompt": "x", **fields}).encode()
    name = next(iter(fields), field)
    return pytest.param(
        "POST", "/predictions/demo", JSON, body, status, field, id=f"{name}={body[15:60]!r}"
    )


def raw(
    id_: str,
    body: bytes,
    headers: dict[str, str],
    status: int,
    field: str,
    path: str = "/predictions/demo",
    method: str = "POST",
) -> Any:
    return pytest.param(method, path, headers, body, status, field, id=id_)


def task(id_: str, document: Any, field: str, status: int = 422) -> Any:
    body = json.dumps(document).encode()
    return pytest.param("POST", "/v1/tasks", JSON, body, status, field, id=id_)


def get(path: str, status: int, field: str, headers: dict[str, str] | None = None) -> Any:
    return pytest.param("GET", path, headers or {}, b"", status, field, id=f"get {path[:60]}")


def put(path: str, document: Any, field: str, status: int = 422) -> Any:
    body = json.dumps(document).encode()
    return pytest.param("PUT", path, JSON, body, status, field, id=f"put {path} {body!r:.50}")


MALFORMED = [
    # bodies that are no request
    raw("empty json", b"", JSON, 400, "body"),
    raw("half json", b'{"prompt": "x"', JSON, 400, "body"),
    raw("a json list", b'["x"]', JSON, 400, "body"),
    raw("a json string", b'"x"', JSON, 400, "body"),
    raw("json null", b"null", JSON, 400, "body"),
    raw("not utf-8 json", b'{"prompt": "\xff"}', JSON, 400, "body"),
    raw("utf-16 json", '{"prompt": "x"}'.encode("utf-16"), JSON, 400, "body"),
    raw("json with nan", b'{"prompt": "x", "temperature": NaN}', JSON, 400, "body"),
    raw("json too deep", b'{"prompt": ' + b"[" * 30000, JSON, 400, "body"),
    raw("a number of 5000 digits", b'{"seed":' + b"9" * 5000 + b"}", JSON, 400, "body"),
    raw("not utf-8 text", b"caf\xe9", TEXT, 400, "prompt"),
    raw("empty text", b"", TEXT, 422, "prompt"),
    raw("empty without type", b"", {}, 422, "prompt"),
    raw("too large", b"x" * (MAX_BODY_BYTES + 1), TEXT, 413, "body"),
    raw("too large json", b'{"prompt": "' + b"x" * MAX_BODY_BYTES, JSON, 413, "body"),
    raw("json half under curl's type", b'{"prompt": ', FORM, 400, "body"),
    # content types
    raw("an image", b"\x89PNG", {"Content-Type": "image/png"}, 415, "Content-Type"),
    raw("xml", b"<x/>", {"Content-Type": "application/xml"}, 415, "Content-Type"),
    raw("latin-1", b"x", {"Content-Type": "text/plain; charset=latin-1"}, 415, "Content-Type"),
    raw("multipart/mixed", b"x", {"Content-Type": "multipart/mixed"}, 415, "Content-Type"),
    raw("text as a task", OK, TEXT, 415, "Content-Type", path="/v1/tasks"),
    # forms
    raw("a form without data", b"prompt=x", FORM, 422, "data"),
    raw("a form not ascii", b"data=\xff", FORM, 422, "data"),
    raw("a form not utf-8", b"data=%ff", FORM, 400, "prompt"),
    raw("multipart without boundary", b"x", {"Content-Type": "multipart/form-data"}, 400, "body"),
    raw(
        "multipart that is none",
        b"garbage",
        {"Content-Type": "multipart/form-data; boundary=b"},
        400,
        "body",
    ),
    raw(
        "multipart without data",
        b'--b\r\nContent-Disposition: form-data; name="other"\r\n\r\nx\r\n--b--\r\n',
        {"Content-Type": "multipart/form-data; boundary=b"},
        422,
        "data",
    ),
    raw(
        "multipart too large",
        b'--b\r\nContent-Disposition: form-data; name="data"\r\n\r\n' + b"x" * MAX_BODY_BYTES,
        {"Content-Type": "multipart/form-data; boundary=b"},
        413,
        "body",
    ),
    # fields of a generation
    predict(field="temprature", temprature=1),
    predict(field="generated", generated=[1, 2]),
    predict(field="prompt", prompt=None),
    predict(field="prompt", prompt=7),
    predict(field="prompt", prompt=""),
    predict(field="prompt", prompt=["x"]),
    predict(field="prompt", prompt="\ud800"),
    predict(field="prompt", prompt="x " * 2000),
    predict(field="prompt", prompt_token_ids=[1]),
    predict(field="max_new_tokens", max_new_tokens=0),
    predict(field="max_new_tokens", max_new_tokens=-1),
    predict(field="max_new_tokens", max_new_tokens=1.5),
    predict(field="max_new_tokens", max_new_tokens="9"),
    predict(field="max_new_tokens", max_new_tokens=True),
    predict(field="max_new_tokens", max_new_tokens=10**9),
    predict(field="temperature", temperature=-0.1),
    predict(field="temperature", temperature="hot"),
    predict(field="top_k", top_k=-1),
    predict(field="top_p", top_p=0),
    predict(field="top_p", top_p=1.01),
    predict(field="seed", seed=2**63),
    predict(field="seed", seed=-1),
    predict(field="stop", stop=7),
    predict(field="stop[0]", stop=[""]),
    predict(field="stop", stop=["x"] * 17),
    predict(field="stop[0]", stop=["x" * 257]),
    predict(field="ignore_eos", ignore_eos="yes"),
    raw("no prompt", b"{}", JSON, 422, "prompt"),
    raw("no tokens", b'{"prompt_token_ids": []}', JSON, 422, "prompt_token_ids"),
    raw("negative token", b'{"prompt_token_ids": [-1]}', JSON, 422, "prompt_token_ids[0]"),
    raw("text token", b'{"prompt_token_ids": ["a"]}', JSON, 422, "prompt_token_ids[0]"),
    raw("unknown token", b'{"prompt_token_ids": [5, 2048]}', JSON, 422, "prompt_token_ids[1]"),
    raw(
        "too many tokens",
        json.dumps({"prompt_token_ids": [5] * 1024}).encode(),
        JSON,
        422,
        "prompt_token_ids",
    ),
    raw("unknown field with a surrogate", b'{"prompt":"x","\\ud800":1}', JSON, 422, "?"),
    # options
    predict(field="stream", stream="yes"),
    predict(field="priority", priority=1001),
    predict(field="priority", priority=0.5),
    predict(field="deadline_s", deadline_s=0),
    predict(field="deadline_s", deadline_s=-5),
    predict(field="deadline_s", deadline_s="soon"),
    predict(field="deadline_s", deadline_s=10**9),
    predict(field="idempotency_key", idempotency_key=""),
    predict(field="idempotency_key", idempotency_key=7),
    predict(field="idempotency_key", idempotency_key="k" * 201),
    raw("two keys", b'{"prompt":"x","idempotency_key":"a"}', {**JSON, "Idempotency-Key": "b"}, 422,
        "idempotency_key"),
    # embeddings
    raw("no input", b"{}", JSON, 422, "input", path="/predictions/encoder"),
    raw("input 7", b'{"input": 7}', JSON, 422, "input", path="/predictions/encoder"),
    raw("no texts", b'{"input": []}', JSON, 422, "input", path="/predictions/encoder"),
    raw("a text 7", b'{"input": ["a", 7]}', JSON, 422, "input[1]", path="/predictions/encoder"),
    raw("a prompt to embed", OK, JSON, 422, "prompt", path="/predictions/encoder"),
    # names, headers, the query
    raw("no such model", OK, JSON, 404, "model", path="/predictions/nobody"),
    raw("no such version", OK, JSON, 404, "version", path="/predictions/demo/2.0"),
    raw("no such path", OK, JSON, 404, "", path="/predictions/demo/1.0/more"),
    raw("no model", OK, JSON, 404, "", path="/predictions"),
    raw("wrong method", b"", {}, 405, "", method="DELETE"),
    raw("tenant", OK, {**JSON, "X-Plait-Tenant": "a b"}, 422, "X-Plait-Tenant"),
    raw("empty tenant", OK, {**JSON, "X-Plait-Tenant": ""}, 422, "X-Plait-Tenant"),
    raw("long tenant", OK, {**JSON, "X-Plait-Tenant": "a" * 65}, 422, "X-Plait-Tenant"),
    raw("request id", OK, {**JSON, "X-Request-Id": "r" * 201}, 422, "X-Request-Id"),
    raw("stream header", OK, {**JSON, "X-Plait-Stream": "maybe"}, 422, "X-Plait-Stream"),
    raw("stream query", OK, JSON, 422, "stream", path="/predictions/demo?stream=1"),
    # the task API
    task("task without model", {"input": {"prompt": "x"}}, "model"),
    task("task with model 7", {"model": 7, "input": {"prompt": "x"}}, "model"),
    task("task of nobody", {"model": "nobody", "input": {"prompt": "x"}}, "model", 404),
    task("task without input", {"model": "demo"}, "input"),
    task("task with text input", {"model": "demo", "input": "x"}, "input"),
    task("task with stray field", {"model": "demo", "input": {"prompt": "x"}, "stream": True},
         "stream"),
    task("task with stray input", {"model": "demo", "input": {"prompt": "x", "m": 2}}, "m"),
    task("task priority", {"model": "demo", "input": {"prompt": "x"}, "priority": "high"},
         "priority"),
    get("/v1/tasks/unknown", 404, "task_id"),
    get("/v1/tasks/unknown/events", 404, "task_id"),
    get("/v1/tasks?state=done", 422, "state"),
    get("/v1/tasks?limit=0", 422, "limit"),
    get("/v1/tasks?limit=many", 422, "limit"),
    get("/v1/tasks?model=nobody", 404, "model"),
    get("/v1/tasks?stat=queued", 422, "stat"),
    get("/v1/models/nobody", 404, "model"),
    get("/v1/tenants/a%20b/weight", 422, "tenant"),
    put("/v1/models/demo/replicas", {"replicas": -1}, "replicas"),
    put("/v1/models/demo/replicas", {"replicas": True}, "replicas"),
    put("/v1/models/demo/replicas", {}, "replicas"),
    put("/v1/models/demo/replicas", {"replicas": 1, "min": 0}, "min"),
    put("/v1/models/nobody/replicas", {"replicas": 1}, "model", 404),
    put("/v1/tenants/t/weight", {"weight": 0}, "weight"),
    put("/v1/tenants/t/weight", {"weight": "3"}, "weight"),
    put("/v1/tenants/t/weight", {"weight": 10**400}, "weight"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "headers", "body", "status", "field"), MALFORMED)
@pytest.mark.asyncio(loop_scope="module")
async def test_a_malformed_request_is_refused_with_a_reason(
    http: aiohttp.ClientSession,
    method: str,
    path: str,
    headers: dict[str, str],
    body: bytes,
    status: int,
    field: str,
) -> None:
    async with asyncio.timeout(5):
        answer = await http.request(
            method, path, headers=headers, data=body, skip_auto_headers=["Content-Type"]
        )
        problem = await answer.json()

    assert (answer.status, problem["field"]) == (status, field), problem
    assert problem["code"] == status
    assert problem["type"]
    assert field.split("_")[0] in problem["message"]


@pytest.mark.parametrize(
    "head",
    [
        b"GARBAGE\r\n\r\n",
        b"POST /predictions/demo HTTP/9.9\r\n\r\n",
        b"POST /predictions/demo HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n",
        b"POST /predictions/demo HTTP/1.1\r\nHost: h\r\nContent-Length: x\r\n\r\n",
        b"POST /predictions/demo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
        b"POST /" + b"p" * 20000 + b" HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /ping HTTP/1.1\r\nHost: h\r\nX-Long: " + b"v" * 20000 + b"\r\n\r\n",
        b"GET /ping HTTP/1.1\r\nHost: h\r\nBad Header\r\n\r\n",
    ],
    ids=lambda head: repr(head[:30]),
)
@pytest.mark.asyncio(loop_scope="module")
async def test_what_is_no_http_is_refused_with_a_4xx(system: GatewaySystem, head: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", system.http_port)
    async with asyncio.timeout(5):
        writer.write(head)
        status_line = await reader.readline()

    writer.close()
    assert status_line.split()[1][:1] == b"4", status_line


@pytest.mark.asyncio(loop_scope="module")
async def test_neighbours_of_malformed_requests_are_served(http: aiohttp.ClientSession) -> None:
    good = [http.post("/predictions/demo", json={"prompt": f"p{i}"}) for i in range(10)]
    bad = [http.post("/predictions/demo", data=b"{", headers=JSON) for _ in range(10)]

    answers = await asyncio.gather(*(each for pair in zip(good, bad, strict=True) for each in pair))

    assert [answer.status for answer in answers] == [200, 400] * 10
    for answer in answers:
        answer.release()
