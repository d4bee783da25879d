"""The bulk API: many inputs in one body, their progress, their outcomes in order, taking all back.

A bulk belongs to its tenant; to others it does not exist. An upload that broke off goes on under
the same idempotency key, or by the bulk's id, from the place that the answer names; outcomes go on
from any place. So neither end ever has to begin anew.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

from aiohttp import web

from scheduler.bulk import MAX_INPUTS, Bulk
from scheduler.errors import InvalidRequest, Unavailable
from scheduler.flow import BULK_CLASS
from scheduler.gateway import views
from scheduler.gateway.bulk_intake import Upload, UploadStopped
from scheduler.gateway.front import Front
from scheduler.gateway.http_request import (
    FRONT,
    KEY_HEADER,
    MAX_BODY_BYTES,
    content_type_of,
    parse_flag,
    problem_headers,
    query_integer,
    refuse_unknown,
    tenant_of,
)
from scheduler.gateway.problems import describe
from scheduler.gateway.submission import parse_key

BEGIN_PARAMETERS: Final = ("model", "name", "class", "from", "close")
EXTEND_PARAMETERS: Final = ("from", "close")
LIST_PARAMETERS: Final = ("limit", "before")
RESULT_PARAMETERS: Final = ("from", "partial")
MAX_PAGE: Final = 1000
MAX_NAME_CHARS: Final = 200
#: Content type of a body, and of the outcomes.
LINES: Final = "application/x-ndjson"
CONTENT_TYPES: Final = (
    LINES, "application/jsonl", "application/json", "application/octet-stream", "text/plain",
)  # fmt: skip
#: Seconds of silence after which a reader of outcomes gets a space, which JSON does not mind.
HEARTBEAT_S: Final = 10.0


async def begin(request: web.Request) -> web.Response:
    """Begin a bulk, or go on with the one the key has, and take its inputs in; 202."""
    front, query = request.app[FRONT], request.query
    refuse_unknown(query, BEGIN_PARAMETERS)
    _check_content_type(request)
    if "model" not in query:
        raise InvalidRequest("model: is missing in the query", field="model")
    config = front.model(query["model"])
    front.check_open()
    await front.require_replicas(config.name)
    bulk = await front.bulks.begin(
        tenant_of(request),
        config.name,
        priority_class=query.get("class", BULK_CLASS),
        name=_name(query.get("name", "")),
        idempotency_key=parse_key(request.headers.get(KEY_HEADER)),
    )
    return await _receive(request, bulk)


async def extend(request: web.Request) -> web.Response:
    """Take further inputs of a bulk in; 202."""
    refuse_unknown(request.query, EXTEND_PARAMETERS)
    _check_content_type(request)
    return await _receive(request, await _find(request))


async def bulks(request: web.Request) -> web.Response:
    """A page of the tenant's bulks, newest first."""
    refuse_unknown(request.query, LIST_PARAMETERS)
    found = await request.app[FRONT].bulks.bulks(
        tenant=tenant_of(request),
        limit=query_integer(request, "limit", 1, MAX_PAGE, 100),
        before=request.query.get("before"),
    )
    return web.json_response({"bulks": [views.bulk(each) for each in found]})


async def bulk(request: web.Request) -> web.Response:
    """A bulk with its tasks counted by state."""
    bulk_id = request.match_info["bulk_id"]
    found = await request.app[FRONT].bulks.progress(bulk_id, tenant_of(request))
    return web.json_response(views.progress(found))


async def cancel(request: web.Request) -> web.Response:
    """Take a bulk back; inputs that have ended stay as they are."""
    front, bulk_id = request.app[FRONT], request.match_info["bulk_id"]
    reason = "its bulk was cancelled by its tenant"
    await front.bulks.cancel(bulk_id, tenant_of(request), reason)
    return web.json_response(views.progress(await front.bulks.progress(bulk_id)))


async def results(request: web.Request) -> web.StreamResponse:
    """What became of the inputs, a line each, in order."""
    front, found = request.app[FRONT], await _find(request)
    refuse_unknown(request.query, RESULT_PARAMETERS)
    start = query_integer(request, "from", 0, MAX_INPUTS, 0)
    is_partial = parse_flag(request.query.get("partial"), "partial")
    response = web.StreamResponse(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
    response.content_type = LINES
    await response.prepare(request)
    try:
        async with aclosing(_lines(front, found, start, is_partial=bool(is_partial))) as lines:
            async for line in lines:
                await response.write(line)
    except Unavailable:
        # The body is over before its end: the reader comes back for what is missing.
        if request.transport is not None:
            request.transport.abort()
        return response
    await response.write_eof()
    return response


async def _lines(
    front: Front, found: Bulk, start: int, *, is_partial: bool
) -> AsyncGenerator[bytes, None]:
    book = front.bulks
    outcomes = book.outcomes(found.id, start) if is_partial else book.follow(found.id, start)
    kind = front.model(found.model).task
    async with aclosing(front.until_closing(outcomes, HEARTBEAT_S)) as pieces:
        async for outcome in pieces:
            if outcome is None:
                yield b" "
            else:
                yield (views.to_json(views.input_outcome(outcome, kind)) + "\n").encode()


async def _receive(request: web.Request, bulk: Bulk) -> web.Response:
    front = request.app[FRONT]
    start = query_integer(request, "from", 0, MAX_INPUTS, 0)
    is_last = parse_flag(request.query.get("close"), "close")
    upload = Upload(front, front.model(bulk.model), bulk, start, request.app[MAX_BODY_BYTES])
    try:
        bulk = await upload.receive(request.content.iter_any())
    except UploadStopped as stopped:
        return _refusal(stopped)
    if is_last is not False:
        bulk = await front.bulks.close(bulk.id)
    headers = {"Location": f"/v1/bulks/{bulk.id}"}
    return web.json_response(views.bulk(bulk), status=202, headers=headers)


def _refusal(stopped: UploadStopped) -> web.Response:
    """The problem, and how to go on: the bulk, and how many of its inputs are accepted."""
    problem = describe(stopped.error)
    document: dict[str, Any] = {
        **problem.to_document(),
        "bulk_id": stopped.bulk.id,
        "num_inputs": stopped.bulk.num_inputs,
        "line": stopped.line,
    }
    if stopped.line is not None:
        document["message"] = f"line {stopped.line}: {problem.message}"
    return web.json_response(document, status=problem.code, headers=problem_headers(problem))


async def _find(request: web.Request) -> Bulk:
    return await request.app[FRONT].bulks.bulk(request.match_info["bulk_id"], tenant_of(request))


def _check_content_type(request: web.Request) -> None:
    given = content_type_of(request)
    if given is not None and given not in CONTENT_TYPES:
        message = f"Content-Type: {given!r} is not taken here; send {LINES}, an object a line"
        raise InvalidRequest(message, field="Content-Type", status=415)


def _name(given: str) -> str:
    if len(given) > MAX_NAME_CHARS or not given.isprintable():
        message = f"name: must be up to {MAX_NAME_CHARS} printable characters"
        raise InvalidRequest(message, field="name")
    return given


ROUTES = [
    web.post("/v1/bulks", begin),
    web.get("/v1/bulks", bulks, allow_head=False),
    web.get("/v1/bulks/{bulk_id}", bulk, allow_head=False),
    web.post("/v1/bulks/{bulk_id}/inputs", extend),
    web.get("/v1/bulks/{bulk_id}/results", results, allow_head=False),
    web.post("/v1/bulks/{bulk_id}/cancel", cancel),
]
