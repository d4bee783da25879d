"""What a client may have to handle.

PlaitError
├── ApiError             the gateway refused; status, type and field say why
│   ├── InputRefused     an input of a bulk cannot be served
│   └── TaskUnsuccessful the task ended without a result
└── Unreachable          nobody answered for as long as the client was told to be patient
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scheduler.errors import PlaitError


class ApiError(PlaitError):
    """The gateway's refusal."""

    def __init__(
        self,
        status: int,
        type_: str,
        message: str,
        field: str = "",
        *,
        quota: str = "",
        retry_after_s: float | None = None,
        document: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.type = type_
        self.message = message
        #: The part of the request to change; empty when it is not one part.
        self.field = field
        #: The quota that is used up; empty when it is not one.
        self.quota = quota
        #: Seconds after which the same request may be let in; None: the gateway gave none.
        self.retry_after_s = retry_after_s
        #: The whole answer.
        self.document: Mapping[str, Any] = document or {}


class InputRefused(ApiError):
    """An input of a bulk cannot be served as it is; those before it are accepted."""

    def __init__(self, refusal: ApiError, index: int) -> None:
        message = f"input {index}: {refusal.message.partition(': ')[2]}"
        super().__init__(
            refusal.status, refusal.type, message, refusal.field, document=refusal.document
        )
        #: Its place, from 0.
        self.index = index


class TaskUnsuccessful(ApiError):
    """A task that was followed to its end failed, expired or was cancelled."""

    def __init__(self, task: Mapping[str, Any]) -> None:
        error = task.get("error") or {}
        state = task["state"]
        because = f": {error['message']}" if error else ""
        message = f"task {task['task_id']} ended as {state}{because}"
        super().__init__(error.get("status", 409), state, message, error.get("field", ""))
        self.task = task


class Unreachable(PlaitError):
    """Nobody answered, and patience ran out; what was accepted goes on."""

    status = 503
