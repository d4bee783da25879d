"""How a problem is told over gRPC: a status code, the message, and the field in the trailers.

An unforeseen error becomes INTERNAL without details and is logged here, for every service alike.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc
import structlog

from scheduler.gateway.problems import Problem, describe
from scheduler.gateway.submission import parse_tenant

log = structlog.get_logger(__name__)

#: Trailers that carry what a status code cannot.
FIELD_TRAILER: Final = "x-plait-field"
TYPE_TRAILER: Final = "x-plait-type"
CODE_TRAILER: Final = "x-plait-code"
TENANT_METADATA: Final = "x-plait-tenant"
TASK_METADATA: Final = "x-plait-task-id"

_CODES: Final = {
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.ABORTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


def status_of(problem: Problem) -> grpc.StatusCode:
    """The status code that fits a problem."""
    if problem.type == "Cancelled":
        return grpc.StatusCode.CANCELLED
    if problem.code in _CODES:
        return _CODES[problem.code]
    is_fault = problem.code < 500
    return grpc.StatusCode.INVALID_ARGUMENT if is_fault else grpc.StatusCode.INTERNAL


@asynccontextmanager
async def problems_as_status(context: Any) -> AsyncIterator[None]:
    """End the call with the status that an exception stands for."""
    try:
        yield
    except Exception as error:
        problem = describe(error)
        if problem.type == "InternalError":
            log.exception("call_failed")
    else:
        return
    trailers = (
        (TYPE_TRAILER, problem.type),
        (CODE_TRAILER, str(problem.code)),
        (FIELD_TRAILER, problem.field.encode("ascii", "replace").decode()),
    )
    await context.abort(status_of(problem), problem.message, trailers)


def tenant_of(context: Any) -> str:
    """Whom a call is accounted to, from its metadata."""
    given = dict(context.invocation_metadata() or ()).get(TENANT_METADATA)
    return parse_tenant(given, TENANT_METADATA)
