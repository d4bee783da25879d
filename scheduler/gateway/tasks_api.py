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
from scheduler.gateway import views, waiting
from scheduler.gateway.front import Front
from scheduler.gateway.http_request import (
    CALLER,
    FRONT,
    KEY_HEADER,
    TASK_ID,
    json_body,
    parse_flag,
    query_integer,
    refuse_unknown,
    tenant_of,
)
from scheduler.gateway.submission import parse_key, parse_options, parse_state
from scheduler.gateway.waiting import Waits
from scheduler.task import Task, TaskEvent

SUBMIT_FIELDS = ("model", "input", "class", "priority", "deadline_s", "idempotency_key")
LIST_PARAMETERS = ("state", "dead", "all", "model", "limit", "before")
#: Tasks of a page, unless something else is asked for, and at most.
PAGE = 100
MAX_PAGE = 1000
MAX_CURSOR = 10**15
#: Seconds of silence after which a follower gets a comment, so that both ends see they live.
HEARTBEAT_S = 10.0


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
    """A page of the tenant's tasks, or for operators of all tenants', newest first."""
    front, query = request.app[FRONT], request.query
    refuse_unknown(query, LIST_PARAMETERS)
    found = await front.book.tasks(
        tenant=_whose(request),
        model=front.model(query["model"]).name if "model" in query else None,
        state=parse_state(query.get("state")),
        is_dead=parse_flag(query.get("dead"), "dead") or False,
        limit=query_integer(request, "limit", 1, MAX_PAGE, PAGE),
        before=query.get("before"),
    )
    return web.json_response({"tasks": [views.summary(task) for task in found]})


def _whose(request: web.Request) -> str | None:
    """The tenant whose tasks are listed; None: all tenants'."""
    if not parse_flag(request.query.get("all"), "all"):
        return tenant_of(request)
    request[CALLER].require_operator()
    return None


async def task(request: web.Request) -> web.Response:
    """All there is to tell about one task."""
    document = await request.app[FRONT].detail(await _find(request))
    return web.json_response(document, dumps=views.to_json)


async def cancel(request: web.Request) -> web.Response:
    """Take a task back; one that has ended stays as it is."""
    front, task_id = request.app[FRONT], request.match_info["task_id"]
    reason = "cancelled by its tenant"
    found = await front.book.cancel(task_id, tenant=tenant_of(request), reason=reason)
    return web.json_response(views.outcome(found))


async def pause(request: web.Request) -> web.Response:
    """Make a task wait until it is resumed; it keeps what it has produced."""
    return _moved(await request.app[FRONT].book.pause(*_named(request)))


async def resume(request: web.Request) -> web.Response:
    """Let a paused task go on; one that is not paused and has not ended stays as it is."""
    return _moved(await request.app[FRONT].book.resume(*_named(request)))


async def requeue(request: web.Request) -> web.Response:
    """Try a dead letter again, from its journal."""
    return _moved(await request.app[FRONT].book.requeue(*_named(request)))


def _named(request: web.Request) -> tuple[str, str]:
    return request.match_info["task_id"], tenant_of(request)


def _moved(task: Task) -> web.Response:
    return web.json_response(views.outcome(task))


async def explain(request: web.Request) -> web.Response:
    """Why a task waits and until when, or the story of its attempts."""
    found = await _find(request)
    explanation = await request.app[FRONT].explainer.explain(found.id)
    return web.json_response(views.explanation(explanation))


async def events(request: web.Request) -> web.StreamResponse:
    """A task's events from a cursor on, as server-sent events."""
    front, found = request.app[FRONT], await _find(request)
    cursor = _cursor(request)
    response = web.StreamResponse(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
    response.content_type, response.charset = "text/event-stream", "utf-8"
    try:
        async with aclosing(waiting.follow(front, found.id, cursor, HEARTBEAT_S)) as following:
            async for event in following:
                if not response.prepared:
                    await response.prepare(request)
                await response.write(await _frame(front, event))
    except Unavailable:
        if not response.prepared:
            raise
        # The stream is over before its end: the follower comes back with its cursor.
        if request.transport is not None:
            request.transport.abort()
        return response
    await response.write_eof()
    return response


async def _frame(front: Front, event: TaskEvent | Waits | None) -> bytes:
    if event is None:
        return b": alive\n\n"
    if isinstance(event, Waits):
        document = views.explanation(event.explanation)
        return views.server_sent_frame(document, kind="explain", cursor=event.cursor)
    return views.server_sent(event, await front.ended_attempt(event))


async def _find(request: web.Request) -> Task:
    found = await request.app[FRONT].book.task(request.match_info["task_id"], tenant_of(request))
    request[TASK_ID] = found.id
    return found


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
    web.post("/v1/tasks/{task_id}/pause", pause),
    web.post("/v1/tasks/{task_id}/resume", resume),
    web.post("/v1/tasks/{task_id}/requeue", requeue),
    web.get("/v1/tasks/{task_id}/explain", explain, allow_head=False),
    web.get("/v1/tasks/{task_id}/events", events, allow_head=False),
]
