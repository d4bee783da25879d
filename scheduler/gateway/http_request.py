"""What the HTTP handlers read from a request the same way: tenant, JSON body, query.

Each reader returns a value that is right or raises an ``InvalidRequest`` that names the header,
field or query parameter.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web

from scheduler.errors import InvalidRequest
from scheduler.gateway.bodies import is_json, json_object
from scheduler.gateway.front import Front
from scheduler.gateway.keyring import Caller
from scheduler.gateway.problems import Problem

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

FRONT: Final = web.AppKey("front", Front)
MAX_BODY_BYTES: Final = web.AppKey("max_body_bytes", int)
REQUEST_ID_HEADER: Final = "X-Request-Id"
TASK_HEADER: Final = "X-Plait-Task-Id"
TENANT_HEADER: Final = "X-Plait-Tenant"
STREAM_HEADER: Final = "X-Plait-Stream"
CLASS_HEADER: Final = "X-Plait-Class"
AUTHORIZATION_HEADER: Final = "Authorization"
KEY_HEADER: Final = "Idempotency-Key"
#: What machines ask that have no key, such as a load balancer.
OPEN_PATHS: Final = ("/ping", "/ready")
CALLER: Final = web.RequestKey("caller", Caller)
REQUEST_ID: Final = web.RequestKey("request_id", str)
#: Where a handler leaves the id of its request's task, for the header of the answer.
TASK_ID: Final = web.RequestKey("task_id", str)


async def identify(request: web.Request) -> None:
    """Find out who sends the request, for the readers below.

    Raises:
        Unauthenticated: the key it shows is not valid, or it needs one.
    """
    caller = await request.app[FRONT].keyring.identify(request.headers.get(AUTHORIZATION_HEADER))
    if request.path not in OPEN_PATHS:
        caller.require_key()
    request[CALLER] = caller


def tenant_of(request: web.Request) -> str:
    """Whom the request is accounted to."""
    return request[CALLER].tenant(request.headers.get(TENANT_HEADER), TENANT_HEADER)


def operators_only(handler: Handler) -> Handler:
    """The handler, for operators alone."""

    @functools.wraps(handler)
    async def guarded(request: web.Request) -> web.StreamResponse:
        request[CALLER].require_operator()
        return await handler(request)

    return guarded


def content_type_of(request: web.Request) -> str | None:
    """The content type as the client sent it; None when it sent none."""
    return request.content_type if request.headers.get("Content-Type") else None


async def json_body(request: web.Request, allowed: Collection[str]) -> dict[str, Any]:
    """The JSON object of a request whose fields are ``allowed`` ones."""
    content_type = content_type_of(request)
    if content_type is not None and not is_json(content_type):
        message = f"Content-Type: {content_type!r} is not taken here; send application/json"
        raise InvalidRequest(message, field="Content-Type", status=415)
    document = json_object(await request.read())
    refuse_unknown(document, allowed)
    return document


def refuse_unknown(given: Mapping[str, Any], allowed: Collection[str]) -> None:
    """Refuse a field or query parameter that would otherwise be ignored in silence."""
    for name in given:
        if name not in allowed:
            message = f"{name:.64}: unknown; allowed are: {', '.join(allowed)}"
            raise InvalidRequest(message, field=name[:64])


def query_integer(request: web.Request, name: str, low: int, high: int, default: int) -> int:
    """A whole number from the query."""
    given = request.query.get(name)
    if given is None:
        return default
    if not re.fullmatch(r"-?[0-9]{1,18}", given) or not low <= int(given) <= high:
        message = f"is {given!r:.40}; allowed are whole numbers from {low} to {high}"
        raise InvalidRequest(f"{name}: {message}", field=name)
    return int(given)


def parse_flag(given: str | None, field: str) -> bool | None:
    """ "true" or "false" from a header or the query; None when it is not there."""
    if given is None:
        return None
    if given.lower() not in ("true", "false"):
        raise InvalidRequest(f"{field}: must be true or false, not {given!r:.40}", field=field)
    return given.lower() == "true"


def problem_headers(problem: Problem) -> dict[str, str]:
    """The headers of an answer that tells a problem."""
    headers = {}
    if problem.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(problem.retry_after_s)))
    if problem.code == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return headers
