"""The HTTP server: which paths there are, and what surrounds every request.

Each request gets an id, each error becomes JSON with a status, and a client that leaves cancels the
handler that works for it, so that nobody has to write in order to notice. What the paths do is in
the modules that answer them.
"""

from __future__ import annotations

import uuid

import structlog
from aiohttp import web

from scheduler.errors import InvalidRequest
from scheduler.gateway import (
    bulks_api,
    classes_api,
    containers_api,
    keys_api,
    operations_api,
    predictions,
    reconciliation_api,
    tasks_api,
    tenants_api,
)
from scheduler.gateway.front import Front
from scheduler.gateway.http_request import (
    FRONT,
    MAX_BODY_BYTES,
    REQUEST_ID,
    REQUEST_ID_HEADER,
    TASK_HEADER,
    TASK_ID,
    Handler,
    identify,
    problem_headers,
)
from scheduler.gateway.problems import Problem, describe, http_problem

log = structlog.get_logger(__name__)

#: Where the paths and their handlers are.
MODULES = (
    predictions,
    tasks_api,
    bulks_api,
    operations_api,
    tenants_api,
    keys_api,
    classes_api,
    containers_api,
    reconciliation_api,
)
MAX_REQUEST_ID_CHARS = 200
#: Seconds that requests still have once the server closes; their streams end by themselves.
SHUTDOWN_S = 5.0


def make_app(front: Front, max_body_bytes: int) -> web.Application:
    """The application, to be run with :func:`open_http`."""
    app = web.Application(client_max_size=max_body_bytes, middlewares=[_guard])
    app[FRONT] = front
    app[MAX_BODY_BYTES] = max_body_bytes
    app.on_response_prepare.append(_add_headers)
    app.on_shutdown.append(_close)
    app.on_cleanup.append(_wait_closed)
    for module in MODULES:
        app.add_routes(module.ROUTES)
    return app


async def open_http(front: Front, host: str, port: int, max_body_bytes: int) -> web.AppRunner:
    """Listen; ``runner.addresses`` says where, ``await runner.cleanup()`` ends it.

    Raises:
        OSError: the address is taken or not ours.
    """
    runner = web.AppRunner(
        make_app(front, max_body_bytes),
        # This is how a client that leaves is noticed: its handler is cancelled.
        handler_cancellation=True,
        access_log=None,
        shutdown_timeout=SHUTDOWN_S,
    )
    try:
        await runner.setup()
        await web.TCPSite(runner, host, port).start()
    except BaseException:
        await runner.cleanup()
        raise
    return runner


@web.middleware
async def _guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        request[REQUEST_ID] = _request_id(request)
        await identify(request)
        return await handler(request)
    except web.HTTPException as error:
        return _http_error(request, error)
    except ConnectionResetError:
        # The client has left in the middle of its answer: nobody reads this one either.
        return web.Response()
    # Whatever comes up, the client is answered in JSON; what nobody foresaw is logged.
    except Exception as error:
        problem = describe(error)
        if problem.type == "InternalError":
            log.exception("request_failed", path=request.path)
        return to_response(problem)


def to_response(problem: Problem) -> web.Response:
    """A problem as an HTTP answer."""
    headers = problem_headers(problem)
    return web.json_response(problem.to_document(), status=problem.code, headers=headers)


def _http_error(request: web.Request, error: web.HTTPException) -> web.Response:
    if error.status == 413:
        limit = request.app[MAX_BODY_BYTES]
        problem = http_problem(413, f"body: is larger than the {limit} bytes allowed", "body")
    elif isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        message = f"{error.method} is not allowed for {request.path}; allowed are {allowed}"
        problem = http_problem(405, message)
    elif error.status == 404:
        problem = http_problem(404, f"there is no path {request.path!r}")
    else:
        problem = http_problem(error.status, error.text or error.reason)
    response = to_response(problem)
    if "Allow" in error.headers:
        response.headers["Allow"] = error.headers["Allow"]
    return response


def _request_id(request: web.Request) -> str:
    given = request.headers.get(REQUEST_ID_HEADER)
    if given is None:
        return uuid.uuid4().hex
    if not given.isascii() or not given.isprintable() or len(given) > MAX_REQUEST_ID_CHARS:
        message = f"must be at most {MAX_REQUEST_ID_CHARS} printable ASCII characters"
        raise InvalidRequest(f"{REQUEST_ID_HEADER}: {message}", field=REQUEST_ID_HEADER)
    return given


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    for header, key in ((REQUEST_ID_HEADER, REQUEST_ID), (TASK_HEADER, TASK_ID)):
        if key in request:
            response.headers[header] = request[key]


async def _close(app: web.Application) -> None:
    app[FRONT].close()


async def _wait_closed(app: web.Application) -> None:
    await app[FRONT].wait_closed()
