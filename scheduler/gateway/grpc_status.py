"""How a problem is told over gRPC: a status code, the message, and the field in the trailers.

An unforeseen error becomes INTERNAL without details and is logged here, for every service alike.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc
import structlog

from scheduler.gateway.front import Front
from scheduler.gateway.problems import Problem, describe

log = structlog.get_logger(__name__)

#: Trailers that carry what a status code cannot.
FIELD_TRAILER: Final = "x-plait-field"
TYPE_TRAILER: Final = "x-plait-type"
QUOTA_TRAILER: Final = "x-plait-quota"
RETRY_TRAILER: Final = "x-plait-retry-after-s"
CODE_TRAILER: Final = "x-plait-code"
TENANT_METADATA: Final = "x-plait-tenant"
TASK_METADATA: Final = "x-plait-task-id"
CLASS_METADATA: Final = "x-plait-class"
KEY_METADATA: Final = "authorization"

_CODES: Final = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
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
    await context.abort(status_of(problem), problem.message, tuple(_trailers(problem)))


def _trailers(problem: Problem) -> Iterator[tuple[str, str]]:
    yield TYPE_TRAILER, problem.type
    yield CODE_TRAILER, str(problem.code)
    yield FIELD_TRAILER, problem.field.encode("ascii", "replace").decode()
    if problem.quota:
        yield QUOTA_TRAILER, problem.quota
    if problem.retry_after_s is not None:
        yield RETRY_TRAILER, f"{problem.retry_after_s:.3f}"


async def tenant_of(context: Any, front: Front, named: str = "") -> str:
    """Whom a call is accounted to: whom its key, its message (``named``) or its metadata names.

    Raises:
        InvalidRequest: that is no tenant's name.
        Unauthenticated: its key is not valid, or it needs one.
        NotPermitted: its key is another tenant's.
    """
    metadata = dict(context.invocation_metadata() or ())
    caller = await front.keyring.identify(metadata.get(KEY_METADATA))
    caller.require_key()
    given, field = (named, "tenant") if named else (metadata.get(TENANT_METADATA), TENANT_METADATA)
    return caller.tenant(given, field)
