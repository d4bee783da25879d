"""The errors Plait raises on purpose.

    PlaitError
    ├── RequestError                  the caller is at fault; has an HTTP status below 500
    │   ├── InvalidRequest            422 (or 400, 413, 415): a field cannot be served as it is
    │   ├── ModelNotFound             404
    │   ├── TaskNotFound              404
    │   ├── KeyNotFound               404
    │   ├── BulkNotFound              404
    │   ├── BulkClosed                409: the bulk takes no more inputs
    │   ├── IdempotencyConflict       409: the key was used for another request
    │   ├── InputsDiffer              409: the bulk has another input in this place
    │   ├── InvalidTransition         409: the task's state does not allow this move
    │   ├── NotResumable              409: its output cannot be gone on from
    │   ├── Unauthenticated           401: a key is needed, or the one shown is not valid
    │   ├── NotPermitted              403: the key shown does not open this
    │   ├── ClassNotAllowed           403: the tenant may not use this priority class
    │   ├── QuotaExceeded             429: the tenant has all it may have; try again later
    │   └── StaleLease                409: the lease was given to somebody else
    ├── Unavailable                   503: try again later; nothing accepted is lost
    │   ├── StoreUnavailable          the store refused; whether it wrote is unknown
    │   └── Overloaded                accepting more would put memory or disk at risk
    └── StartupError                  something needed to start is missing or taken

A message says what happened, to which id, and what is allowed or what to do next.
"""

from __future__ import annotations

from collections.abc import Sequence


class PlaitError(Exception):
    """Base of every error Plait raises on purpose."""

    #: HTTP status that fits.
    status = 500


class RequestError(PlaitError):
    """The request is at fault; ``field`` names the part to change, or is empty."""

    status = 400

    def __init__(self, message: str, *, field: str = "", status: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        if status is not None:
            self.status = status


class InvalidRequest(RequestError):
    """A field of the request cannot be served as it is."""

    status = 422


class ModelNotFound(RequestError):
    """No model of that name is configured."""

    status = 404

    def __init__(self, model: str, known: Sequence[str]) -> None:
        names = ", ".join(sorted(known)) or "none"
        super().__init__(f"there is no model {model!r}; configured are: {names}", field="model")
        self.model = model


class TaskNotFound(RequestError):
    """The task was never accepted, belongs to another tenant, or has been purged."""

    status = 404

    def __init__(self, task_id: str) -> None:
        super().__init__(f"there is no task {task_id!r}", field="task_id")
        self.task_id = task_id


class KeyNotFound(RequestError):
    """There is no key of that id."""

    status = 404

    def __init__(self, key_id: str) -> None:
        super().__init__(f"there is no key {key_id!r}", field="key_id")


class BulkNotFound(RequestError):
    """The bulk was never begun, belongs to another tenant, or has been purged."""

    status = 404

    def __init__(self, bulk_id: str) -> None:
        super().__init__(f"there is no bulk {bulk_id!r}", field="bulk_id")


class BulkClosed(RequestError):
    """Inputs came for a bulk that was closed or cancelled."""

    status = 409

    def __init__(self, bulk_id: str, num_inputs: int, *, is_cancelled: bool) -> None:
        what = "was cancelled" if is_cancelled else "is closed"
        super().__init__(
            f"bulk {bulk_id} {what} with {num_inputs} inputs and takes no more; "
            "begin another under another key",
            field="bulk_id",
        )
        self.bulk_id = bulk_id


class InputsDiffer(RequestError):
    """A bulk was gone on with that is not the one it was begun as."""

    status = 409

    def __init__(self, bulk_id: str, what: str) -> None:
        super().__init__(
            f"this is not what bulk {bulk_id} was begun with: {what}; take another key",
            field="idempotency_key",
        )
        self.bulk_id = bulk_id


class IdempotencyConflict(RequestError):
    """A tenant used an idempotency key for a second, different request."""

    status = 409

    def __init__(self, key: str, task_id: str) -> None:
        message = f"idempotency key {key!r} belongs to task {task_id} with another request"
        super().__init__(message, field="idempotency_key")
        self.task_id = task_id


class InvalidTransition(RequestError):
    """A task was asked to make a move its state does not allow."""

    status = 409

    def __init__(self, task_id: str, start: str, finish: str, allowed: Sequence[str]) -> None:
        options = ", ".join(allowed) or "none: it is final"
        super().__init__(
            f"task {task_id} cannot go from {start} to {finish}; "
            f"from {start} it may go to: {options}"
        )
        self.task_id = task_id


class NotResumable(RequestError):
    """A task was asked to wait that could not go on from what it has produced."""

    status = 409

    def __init__(self, task_id: str, num_tokens: int) -> None:
        super().__init__(
            f"task {task_id} cannot be paused: it could not go on from its {num_tokens} tokens "
            "(resume: none); cancel it or let it finish"
        )
        self.task_id = task_id


class Unauthenticated(RequestError):
    """A key is needed and none was shown, or the one shown is not valid."""

    status = 401


class NotPermitted(RequestError):
    """The key that was shown is valid and does not open this."""

    status = 403


class ClassNotAllowed(RequestError):
    """A tenant asked for a priority class that operators have not given it."""

    status = 403

    def __init__(self, tenant: str, priority_class: str, allowed: Sequence[str]) -> None:
        names = ", ".join(allowed) or "none"
        message = f"tenant {tenant} may not use class {priority_class!r}; it may use: {names}"
        super().__init__(message, field="class")


class QuotaExceeded(RequestError):
    """A tenant has as much as operators let it have; what it has is not touched."""

    status = 429

    def __init__(self, quota: str, message: str, retry_after_s: float | None) -> None:
        """``quota``: its name. ``retry_after_s``: None when waiting would not help."""
        super().__init__(message)
        self.quota = quota
        self.retry_after_s = retry_after_s


class StaleLease(RequestError):
    """A write presented a fencing token that is no longer the task's own; it changed nothing."""

    status = 409

    def __init__(self, task_id: str, fence: int) -> None:
        super().__init__(f"lease {fence} of task {task_id} has ended; stop working on it")
        self.task_id = task_id
        self.fence = fence


class Unavailable(PlaitError):
    """Not now; nothing accepted is lost, and the same call may succeed later."""

    status = 503


class StoreUnavailable(Unavailable):
    """The store refused. Whether it wrote is unknown: repeat the call, which is idempotent."""


class Overloaded(Unavailable):
    """More work is not let in, so that what was let in can be done and written down."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class StartupError(PlaitError):
    """Something needed to start is missing or taken; the message says what to do."""
