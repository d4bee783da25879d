"""The task API: submit and go, come back, follow, take back.

A task belongs to its tenant; to others it does not exist. A submitted task goes on whoever leaves.
Its events carry a cursor: a follower that comes back with the last one misses nothing and sees
nothing twice.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

from aiohttp import web

from scheduler.errors import InvalidRequest, Unavailable
from scheduler.gateway import views
from scheduler.gateway.front import Front
from scheduler.gateway.http_request import (
    FRONT,
    KEY_HEADER,
    TASK_ID,
    json_body,
    query_integer,
    refuse_unknown,
    tenant_of,
)
from scheduler.gateway.submission import parse_key, parse_options
from scheduler.task import JournalChunk, Task, TaskState

SUBMIT_FIELDS = ("model", "input", "priority", "deadline_s", "idempotency_key")
LIST_PARAMETERS = ("state", "model", "limit", "before")
MAX_PAGE = 1000
MAX_CURSOR = 10**15
#: Seconds of silence after which a follower gets a comment, so that both ends see they live.
HEARTBEAT_S = 10.0
_CHUNKS_A_READ = 1000


async def submit(request: web.Request) -> web.Response:
    """Accept a task; 202, also for a repeat under the same idempotency key."""
    front, tenant = request.app[FRONT], tenant_of(request)
    body = await json_body(request, SUBMIT_FIELDS)
    config = front.model(_text(body, "model"))
    document = body.get("input")
    if not isinstance(document, dict):
        raise InvalidRequest("input: must be an object with the model's fields", field="input")
    options = parse_options({**_key(request), **body})
    task, _ = await front.accept(config, document, options, tenant)
    request[TASK_ID] = task.id
    headers = {"Location": f"/v1/tasks/{task.id}"}
    return web.json_response(views.outcome(task), status=202, headers=headers)


async def tasks(request: web.Request) -> web.Response:
    """A page of the tenant's tasks, newest first."""
    front, query = request.app[FRONT], request.query
    refuse_unknown(query, LIST_PARAMETERS)
    found = await front.book.tasks(
        tenant=tenant_of(request),
        model=front.model(query["model"]).name if "model" in query else None,
        state=_state(query.get("state")),
        limit=query_integer(request, "limit", 1, MAX_PAGE, 100),
        before=query.get("before"),
    )
    return web.json_response({"tasks": [views.summary(task) for task in found]})


async def task(request: web.Request) -> web.Response:
    """All there is to tell about one task."""
    book = request.app[FRONT].book
    found = await _find(request)
    attempts = await book.attempts(found.id)
    chunks = await _journal(request.app[FRONT], found.id)
    return web.json_response(views.detail(found, attempts, chunks), dumps=views.to_json)


async def cancel(request: web.Request) -> web.Response:
    """Take a task back; one that has ended stays as it is."""
    front, task_id = request.app[FRONT], request.match_info["task_id"]
    reason = "cancelled by its tenant"
    found = await front.book.cancel(task_id, tenant=tenant_of(request), reason=reason)
    return web.json_response(views.outcome(found))


async def events(request: web.Request) -> web.StreamResponse:
    """A task's events from a cursor on, as server-sent events."""
    front, found = request.app[FRONT], await _find(request)
    cursor = _cursor(request)
    response = web.StreamResponse(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
    response.content_type, response.charset = "text/event-stream", "utf-8"
    try:
        async with aclosing(front.follow(found.id, cursor, HEARTBEAT_S)) as following:
            async for event in following:
                if not response.prepared:
                    await response.prepare(request)
                await response.write(views.server_sent(event) if event else b": alive\n\n")
    except Unavailable:
        if not response.prepared:
            raise
        # The stream is over before its end: the follower comes back with its cursor.
        if request.transport is not None:
            request.transport.abort()
        return response
    await response.write_eof()
    return response


async def _find(request: web.Request) -> Task:
    found = await request.app[FRONT].book.task(request.match_info["task_id"], tenant_of(request))
    request[TASK_ID] = found.id
    return found


async def _journal(front: Front, task_id: str) -> list[JournalChunk]:
    chunks: list[JournalChunk] = []
    while page := await front.book.chunks(task_id, len(chunks), _CHUNKS_A_READ):
        chunks += page
    return chunks


def _cursor(request: web.Request) -> int:
    """The header of a browser that reconnects is newer than the address it reconnects to."""
    last = request.headers.get("Last-Event-ID")
    if last is None:
        return query_integer(request, "cursor", 0, MAX_CURSOR, 0)
    if not last.isascii() or not last.isdigit() or int(last) > MAX_CURSOR:
        message = f"Last-Event-ID: is {last!r:.40}, which is no cursor of an event"
        raise InvalidRequest(message, field="Last-Event-ID")
    return int(last)


def _key(request: web.Request) -> dict[str, Any]:
    given = parse_key(request.headers.get(KEY_HEADER))
    return {} if given is None else {"idempotency_key": given}


def _state(given: str | None) -> TaskState | None:
    if given is None:
        return None
    try:
        return TaskState(given)
    except ValueError:
        allowed = ", ".join(state.value for state in TaskState)
        message = f"state: {given!r:.40} is no state; allowed are: {allowed}"
        raise InvalidRequest(message, field="state") from None


def _text(body: dict[str, Any], field: str) -> str:
    value = body.get(field)
    if not isinstance(value, str):
        raise InvalidRequest(f"{field}: must be a text", field=field)
    return value


ROUTES = [
    web.post("/v1/tasks", submit),
    web.get("/v1/tasks", tasks, allow_head=False),
    web.get("/v1/tasks/{task_id}", task, allow_head=False),
    web.delete("/v1/tasks/{task_id}", cancel),
    web.post("/v1/tasks/{task_id}/cancel", cancel),
    web.get("/v1/tasks/{task_id}/events", events, allow_head=False),
]
