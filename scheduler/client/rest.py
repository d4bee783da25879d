"""The gateway's REST API as methods.

Every call is safe to repeat, a submission because it always carries an idempotency key; so each is
repeated while nobody answers or the store refuses, until patience runs out.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final, cast
from urllib.parse import quote

import requests

from scheduler.client import shapes
from scheduler.client.patience import Patience
from scheduler.client.problems import ApiError, Unreachable

#: Seconds to connect, and between two bytes of an answer.
TIMEOUT_S: Final = (5.0, 60.0)
#: Refusals with status 503 that waiting does not change.
_LASTING: Final = frozenset({"NoReplicas"})
_BROKEN: Final = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
)


class Rest:
    """A client of one gateway, for one tenant."""

    def __init__(
        self, address: str, tenant: str, patience_s: float, tell: Callable[[str], None]
    ) -> None:
        self._address = address.rstrip("/")
        self._patience_s = patience_s
        self._tell = tell
        self._session = requests.Session()
        self._session.headers["X-Plait-Tenant"] = tenant

    def __repr__(self) -> str:
        return f"<Rest {self._address} tenant={self._session.headers['X-Plait-Tenant']!r}>"

    def close(self) -> None:
        self._session.close()

    def submit(
        self,
        model: str,
        document: Mapping[str, Any],
        *,
        priority: int = 0,
        deadline_s: float | None = None,
        idempotency_key: str | None = None,
    ) -> shapes.TaskOutcome:
        """Hand in a task; returns it as soon as it is on disk.

        Raises:
            ApiError: the request was refused; nothing was accepted.
            Unreachable: whether it was accepted is unknown; the same key finds out.
        """
        body = {
            "model": model,
            "input": dict(document),
            "priority": priority,
            "idempotency_key": idempotency_key or uuid.uuid4().hex,
        }
        if deadline_s is not None:
            body["deadline_s"] = deadline_s
        return cast(shapes.TaskOutcome, self._call("POST", "/v1/tasks", body))

    def task(self, task_id: str) -> shapes.TaskDetail:
        """A task with its input, output and attempts."""
        return cast(shapes.TaskDetail, self._call("GET", f"/v1/tasks/{_part(task_id)}"))

    def tasks(
        self,
        *,
        state: str | None = None,
        model: str | None = None,
        limit: int = 100,
        before: str | None = None,
    ) -> shapes.TaskPage:
        """A page of the tenant's tasks, newest first; ``before`` is the last id of the one seen."""
        query = {"state": state, "model": model, "limit": limit, "before": before}
        return cast(shapes.TaskPage, self._call("GET", "/v1/tasks", query=query))

    def cancel(self, task_id: str) -> shapes.TaskOutcome:
        """Take a task back; one that has ended stays as it is."""
        return cast(shapes.TaskOutcome, self._call("DELETE", f"/v1/tasks/{_part(task_id)}"))

    def models(self) -> shapes.ModelList:
        return cast(shapes.ModelList, self._call("GET", "/v1/models"))

    def workers(self) -> shapes.NodeList:
        return cast(shapes.NodeList, self._call("GET", "/v1/workers"))

    def scale(self, model: str, num_replicas: int) -> shapes.Model:
        """Say how many replicas of a model should run; they come and go in the background."""
        path = f"/v1/models/{_part(model)}/replicas"
        return cast(shapes.Model, self._call("PUT", path, {"replicas": num_replicas}))

    def tenants(self) -> shapes.TenantList:
        return cast(shapes.TenantList, self._call("GET", "/v1/tenants"))

    def weight(self, tenant: str) -> float:
        """A tenant's share, relative to 1."""
        return float(self._call("GET", f"/v1/tenants/{_part(tenant)}/weight")["weight"])

    def set_weight(self, tenant: str, weight: float) -> float:
        """Set a tenant's share; returns it as stored, in steps of 0.001."""
        path = f"/v1/tenants/{_part(tenant)}/weight"
        return float(self._call("PUT", path, {"weight": weight})["weight"])

    def is_ready(self) -> bool:
        """Whether every model that should run has a replica that takes work; asks once."""
        try:
            return self._session.get(f"{self._address}/ready", timeout=TIMEOUT_S).status_code == 200
        except _BROKEN:
            return False

    def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        patience = Patience(self._patience_s, self._tell)
        while True:
            try:
                return self._once(method, path, body, query)
            except _BROKEN as error:
                problem = f"nobody answers at {self._address}"
                if not patience.pause(problem):
                    raise Unreachable(f"{problem}: {_reason(error)}") from error
            except ApiError as error:
                if error.status != 503 or error.type in _LASTING:
                    raise
                if not patience.pause(error.message):
                    raise

    def _once(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        query: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        answer = self._session.request(
            method, self._address + path, json=body, params=query, timeout=TIMEOUT_S
        )
        try:
            document = answer.json()
        except requests.exceptions.JSONDecodeError:
            document = None
        if not isinstance(document, dict):
            message = f"{self._address} does not speak Plait's API: {answer.text!r:.80}"
            raise ApiError(answer.status_code, "NoJson", message)
        if answer.ok:
            return document
        message = str(document.get("message", answer.reason))
        type_, field = str(document.get("type", "")), str(document.get("field", ""))
        raise ApiError(answer.status_code, type_, message, field)


def _reason(error: Exception) -> str:
    """What the network said, without the layers it came through."""
    cause: BaseException = error
    while cause.__context__ is not None:
        cause = cause.__context__
    return str(cause)


def _part(value: str) -> str:
    """One part of a path, whatever is in it."""
    return quote(value, safe="")
