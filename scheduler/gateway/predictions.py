"""TorchServe's ``/predictions``: the client waits, and the answer comes whole or in pieces.

The client owns its task: when its connection goes, the task is cancelled. The head of the answer is
sent with the first piece, as TorchServe does, so that a request the model refuses still gets the
status that fits.
"""

from __future__ import annotations

from contextlib import aclosing

from aiohttp import web

from scheduler.errors import InvalidRequest, PlaitError
from scheduler.gateway import bodies
from scheduler.gateway.bodies import Prediction
from scheduler.gateway.following import Form, pieces, whole
from scheduler.gateway.http_request import (
    CLASS_HEADER,
    FRONT,
    KEY_HEADER,
    STREAM_HEADER,
    TASK_ID,
    content_type_of,
    parse_flag,
    tenant_of,
)
from scheduler.gateway.submission import parse_class, parse_key
from scheduler.task import Task


async def predict(request: web.Request) -> web.StreamResponse:
    """Answer one prediction."""
    front, tenant = request.app[FRONT], tenant_of(request)
    version = request.match_info.get("version", "")
    config = front.model(request.match_info["model"], version)
    prediction = await _read(request, config.task)
    form = _form(request, prediction)
    owned = front.owned(config, prediction.document, prediction.options, tenant)
    async with owned as task:
        request[TASK_ID] = task.id
        if form is not None and config.task == "generate":
            return await _stream(request, task, form)
        body, content_type = await whole(front, task, prediction)
        return web.Response(body=body, content_type=content_type, charset="utf-8")


async def _read(request: web.Request, task: str) -> Prediction:
    content_type = content_type_of(request)
    if content_type == bodies.MULTIPART:
        prediction = bodies.from_text(await _multipart_field(request), task)
    elif content_type is not None and content_type.startswith("multipart/"):
        raise bodies.unsupported(content_type)
    else:
        body = await request.read()
        prediction = bodies.read(content_type, request.charset, body, task)
    streams = parse_flag(request.headers.get(STREAM_HEADER), STREAM_HEADER)
    if streams is None:
        streams = parse_flag(request.query.get("stream"), "stream")
    key = parse_key(request.headers.get(KEY_HEADER))
    given = request.headers.get(CLASS_HEADER)
    priority_class = None if given is None else parse_class(given)
    return prediction.with_stream(streams).with_key(key).with_class(priority_class)


async def _multipart_field(request: web.Request) -> bytes:
    try:
        form = await request.post()
    except (ValueError, AssertionError, LookupError) as error:
        # aiohttp's parser has no exception of its own for a form that is none.
        message = f"body: is not a multipart form: {error}"
        raise InvalidRequest(message, field="body", status=400) from error
    value = form.get(bodies.FORM_FIELD)
    if value is None:
        message = f"{bodies.FORM_FIELD}: is missing in the form; it holds the prompt"
        raise InvalidRequest(message, field=bodies.FORM_FIELD)
    if isinstance(value, web.FileField):
        return value.file.read()
    return bytes(value) if isinstance(value, bytes | bytearray) else value.encode("utf-8")


def _form(request: web.Request, prediction: Prediction) -> Form | None:
    """How to stream the answer; None: whole."""
    if "text/event-stream" in request.headers.get("Accept", ""):
        return Form.EVENTS
    if not prediction.options.stream:
        return None
    return Form.TEXT if prediction.is_text else Form.LINES


async def _stream(request: web.Request, task: Task, form: Form) -> web.StreamResponse:
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    response = web.StreamResponse(headers=headers)
    response.content_type, response.charset = form.value, "utf-8"
    try:
        async with aclosing(pieces(request.app[FRONT], task, form)) as parts:
            async for part in parts:
                if not response.prepared:
                    await response.prepare(request)
                await response.write(part)
    except PlaitError:
        if not response.prepared:
            raise
        if form is Form.TEXT:
            # Bare text cannot carry an error; a stream cut short is the one way to say it.
            _cut(request)
        return response
    if not response.prepared:
        await response.prepare(request)
    await response.write_eof()
    return response


def _cut(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


ROUTES = [
    route(path, predict)
    for path in ("/predictions/{model}", "/predictions/{model}/{version}")
    for route in (web.post, web.put)
]
