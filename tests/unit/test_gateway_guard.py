"""What the gateway's guard makes of a handler's errors."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import ClientConnectionResetError, web
from aiohttp.test_utils import make_mocked_request
from structlog.testing import capture_logs

from scheduler.gateway import http


@pytest.fixture(autouse=True)
def nobody_in_particular(monkeypatch: pytest.MonkeyPatch) -> None:
    async def identify(request: web.Request) -> None: ...

    monkeypatch.setattr(http, "identify", identify)


async def guarded(error: Exception) -> web.StreamResponse:
    async def handler(request: web.Request) -> web.StreamResponse:
        raise error

    guard: Any = http._guard
    return await guard(make_mocked_request("GET", "/v1/tasks"), handler)


async def test_a_client_that_leaves_in_the_middle_is_no_error_of_ours() -> None:
    with capture_logs() as logs:
        await guarded(ClientConnectionResetError("Cannot write to closing transport"))

    assert logs == []


async def test_what_nobody_foresaw_is_answered_without_details_and_logged() -> None:
    with capture_logs() as logs:
        response = await guarded(RuntimeError("a secret"))

    assert response.status == 500
    assert [line["event"] for line in logs] == ["request_failed"]
