"""The output of a task as the bytes a waiting client gets, whole or piece by piece.

Three forms of a stream: bare text, lines of JSON, server-sent events. A failure before the first
piece is raised, so that the protocol can answer with a status; afterwards lines and events end
with the error as their last piece, which bare text cannot, and it is raised as well.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from enum import Enum
from typing import Any

from scheduler.errors import PlaitError
from scheduler.gateway import views
from scheduler.gateway.bodies import Prediction
from scheduler.gateway.front import Front
from scheduler.gateway.problems import describe, outcome_error
from scheduler.task import JournalChunk, Task, TaskEvent, TaskState


class Form(Enum):
    """How a stream is written; the value is its content type."""

    TEXT = "text/plain"
    LINES = "application/x-ndjson"
    EVENTS = "text/event-stream"


async def whole(front: Front, task: Task, prediction: Prediction) -> tuple[bytes, str]:
    """The answer in one piece, and its content type.

    Raises:
        TaskUnsuccessful: the task ended without a result.
    """
    chunks: list[JournalChunk] = []
    async with aclosing(front.follow(task.id)) as events:
        async for event in events:
            if event is not None and event.chunk is not None:
                chunks.append(event.chunk)
            elif event is not None and event.kind == "end" and event.task is not None:
                task = event.task
    if task.state is not TaskState.SUCCEEDED:
        raise outcome_error(task)
    kind = front.models[task.model].task
    if prediction.is_text and kind == "generate":
        return str(views.output(chunks)["text"]).encode(), "text/plain"
    return (views.to_json(views.answer(task, chunks, kind)) + "\n").encode(), "application/json"


async def pieces(front: Front, task: Task, form: Form) -> AsyncGenerator[bytes, None]:
    """The answer as it comes.

    Raises:
        TaskUnsuccessful: the task ended without a result.
    """
    cursor = 0
    try:
        async with aclosing(front.follow(task.id)) as events:
            async for event in events:
                if event is not None and (piece := _piece(form, event)):
                    cursor = event.cursor
                    yield piece
    except PlaitError as error:
        if cursor and form is not Form.TEXT:
            yield _frame(form, {"error": describe(error).to_document()}, "error", cursor)
        raise


def _piece(form: Form, event: TaskEvent) -> bytes:
    if event.chunk is not None and form is Form.TEXT:
        return event.chunk.text.encode()
    if event.chunk is not None:
        return _frame(form, views.chunk(event.chunk), "chunk", event.cursor)
    if event.kind == "end" and event.task is not None:
        return _end(form, event.task, event.cursor)
    return b""


def _end(form: Form, task: Task, cursor: int) -> bytes:
    if task.state is not TaskState.SUCCEEDED:
        raise outcome_error(task)
    if form is Form.TEXT:
        return b""
    return _frame(form, views.result(task) or {}, "end", cursor)


def _frame(form: Form, document: dict[str, Any], kind: str, cursor: int) -> bytes:
    if form is Form.EVENTS:
        return views.server_sent_frame(document, kind=kind, cursor=cursor)
    return (views.to_json(document) + "\n").encode()
