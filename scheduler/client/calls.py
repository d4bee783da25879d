"""One call of the gateway's REST API, repeated with patience.

Every call is safe to repeat, a submission because it always carries an idempotency key; so each is
repeated while nobody answers, the store refuses or a quota is used up, until patience runs out. Who
is told when to come back comes back then. What waiting does not change is raised at once. The one
exception is a call that makes something new each time: that is tried once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import quote

import requests

from scheduler.client.patience import Patience
from scheduler.client.problems import ApiError, Unreachable

#: Seconds to connect, and between two bytes of an answer.
TIMEOUT_S: Final = (5.0, 60.0)
#: Refusals with status 503 that waiting does not change.
_LASTING: Final = frozenset({"NoReplicas"})
BROKEN: Final = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
)


class Calls:
    """A connection to one gateway, for one tenant."""

    def __init__(
        self,
        address: str,
        tenant: str | None,
        patience_s: float,
        tell: Callable[[str], None],
        api_key: str = "",
    ) -> None:
        self._address = address.rstrip("/")
        self._patience_s = patience_s
        self._tell = tell
        self._session = requests.Session()
        if tenant is not None:
            self._session.headers["X-Plait-Tenant"] = tenant
        if api_key:
            # Not a header of the session: a .netrc would take its place.
            self._session.auth = _Bearer(api_key)

    def __repr__(self) -> str:
        tenant = self._session.headers.get("X-Plait-Tenant")
        return f"<{type(self).__name__} {self._address} tenant={tenant!r}>"

    def close(self) -> None:
        self._session.close()

    def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | bytes | None = None,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """The answer's JSON. A body of bytes is sent as it is.

        Raises:
            ApiError: the request was refused.
            Unreachable: nobody answered; what became of it is unknown.
        """
        patience = Patience(self._patience_s, self._tell)
        while True:
            try:
                return self.call_once(method, path, body, query, headers)
            except BROKEN as error:
                problem = f"nobody answers at {self._address}"
                if not patience.pause(problem):
                    raise Unreachable(f"{problem}: {reason(error)}") from error
            except ApiError as error:
                if not passes(error):
                    raise
                if not patience.pause(error.message, error.retry_after_s or 0.0):
                    raise

    def call_new(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """The same for a call that makes something new each time: it is tried once."""
        try:
            return self.call_once(method, path, body)
        except BROKEN as error:
            problem = f"nobody answers at {self._address}"
            raise Unreachable(f"{problem}: {reason(error)}") from error

    def call_once(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | bytes | None = None,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """The same, tried once; what breaks it is raised as it is."""
        sent: dict[str, Any] = {"data": body} if isinstance(body, bytes) else {"json": body}
        answer = self._session.request(
            method,
            self._address + path,
            params=query,
            headers=headers,
            timeout=TIMEOUT_S,
            **sent,
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
        raise refusal(answer, document)


class _Bearer(requests.auth.AuthBase):
    """Puts a key onto each request."""

    def __init__(self, api_key: str) -> None:
        self._api_key = api_key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._api_key}"
        return request


def part(value: str) -> str:
    """One part of a path, whatever is in it."""
    return quote(value, safe="")


def refusal(answer: requests.Response, document: Mapping[str, Any]) -> ApiError:
    """What the gateway refused with."""
    given = answer.headers.get("Retry-After", "")
    return ApiError(
        answer.status_code,
        str(document.get("type", "")),
        str(document.get("message", answer.reason)),
        str(document.get("field", "")),
        quota=str(document.get("quota", "")),
        # It may also be a date, from a proxy; we then wait as if it had not been given.
        retry_after_s=float(given) if given.isdecimal() else None,
        document=document,
    )


def passes(error: ApiError) -> bool:
    """Whether waiting may change the refusal."""
    if error.status == 429:
        return error.retry_after_s is not None
    return error.status == 503 and error.type not in _LASTING


def reason(error: Exception) -> str:
    """What the network said, without the layers it came through."""
    cause: BaseException = error
    while cause.__context__ is not None:
        cause = cause.__context__
    return str(cause)
