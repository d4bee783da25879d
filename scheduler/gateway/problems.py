"""How an error is told to a client, whatever protocol it speaks.

Every answer that is not a result is a :class:`Problem`: an HTTP status, a type, a sentence and the
field at fault. An error nobody foresaw is a 500 that says nothing about our insides; who calls
:func:`describe` logs it. It does not know how a protocol writes a problem down.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from http import HTTPStatus
from typing import Any

from handlers.wire import BadRequest
from scheduler.errors import Overloaded, PlaitError, QuotaExceeded, RequestError, Unavailable
from scheduler.gateway.submission import refusal
from scheduler.task import Task, TaskState

#: Long enough for any reason, short enough for a gRPC trailer.
MAX_MESSAGE_CHARS = 2000
#: Seconds a client is told to wait when nothing better is known.
RETRY_AFTER_S = 2.0


@dataclass(frozen=True, slots=True)
class Problem:
    """Why there is no result."""

    #: HTTP status.
    code: int
    type: str
    message: str
    #: The part of the request to change; empty when it is not one part.
    field: str = ""
    #: The quota that is used up; empty when it is not one.
    quota: str = ""
    #: Seconds after which the same request may be let in; None: not known, or it never will.
    retry_after_s: float | None = None

    def to_document(self) -> dict[str, Any]:
        """As JSON; what only some problems have is left out of the others."""
        document = asdict(self)
        if not self.quota:
            del document["quota"]
        if self.retry_after_s is None:
            del document["retry_after_s"]
        return document


class NoReplicas(Unavailable):
    """Nobody is meant to serve the model at the moment; an operator has to change that."""


class GatewayClosing(Unavailable):
    """This control plane stops; what was accepted goes on and can be followed at the next one."""


class TaskUnsuccessful(RequestError):
    """The task a client waited for ended without a result."""

    def __init__(self, task: Task, type_: str, message: str, field: str, status: int) -> None:
        super().__init__(message, field=field, status=status)
        self.task = task
        self.type = type_


def outcome_error(task: Task) -> TaskUnsuccessful:
    """The error a final task that did not succeed stands for."""
    if task.state is TaskState.FAILED and task.error is not None:
        error = task.error
        type_ = "InvalidRequest" if error.status < HTTPStatus.INTERNAL_SERVER_ERROR else "Failed"
        named = f"{error.field}: {error.message}" if error.field else error.message
        return TaskUnsuccessful(task, type_, named, error.field, error.status)
    if task.state is TaskState.EXPIRED:
        message = f"the deadline of task {task.id} passed before it finished"
        return TaskUnsuccessful(task, "DeadlineExceeded", message, "deadline_s", 504)
    message = f"task {task.id} ended as {task.state.value}"
    return TaskUnsuccessful(task, task.state.value.capitalize(), message, "", 409)


def describe(error: Exception) -> Problem:
    """The problem an exception stands for; anything unforeseen is a 500 without details."""
    if isinstance(error, BadRequest):
        error = refusal(error)
    if isinstance(error, TaskUnsuccessful):
        return _problem(error.status, error.type, error.message, error.field)
    if isinstance(error, RequestError):
        problem = _problem(error.status, type(error).__name__, error.message, error.field)
        if isinstance(error, QuotaExceeded):
            return replace(problem, quota=error.quota, retry_after_s=error.retry_after_s)
        return problem
    if isinstance(error, PlaitError):
        problem = _problem(error.status, type(error).__name__, str(error), "")
        return replace(problem, retry_after_s=_pause_s(error))
    return Problem(500, "InternalError", "an internal error, which has been logged")


def _pause_s(error: PlaitError) -> float | None:
    if isinstance(error, Overloaded):
        return error.retry_after_s
    return RETRY_AFTER_S if isinstance(error, Unavailable) else None


def http_problem(status: int, message: str, field: str = "") -> Problem:
    """A problem of the protocol itself: no such path, wrong method, body too large."""
    words = re.sub(r"[^A-Za-z ]", "", HTTPStatus(status).phrase).title()
    return _problem(status, words.replace(" ", ""), message, field)


def _problem(code: int, type_: str, message: str, field: str) -> Problem:
    # A message may quote what a client sent, lone surrogates included, and those encode to nothing.
    message, field = (text.encode(errors="replace").decode() for text in (message, field))
    if len(message) > MAX_MESSAGE_CHARS:
        message = message[: MAX_MESSAGE_CHARS - 1] + "…"
    return Problem(code, type_, message, field[:100])
