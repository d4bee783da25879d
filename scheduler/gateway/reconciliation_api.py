"""What has drifted and was put right, and a look at everything now: for operators.

Each control plane counts for itself, from its start.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from aiohttp import web

from scheduler.drift import Tally
from scheduler.gateway.http_request import FRONT, operators_only


@operators_only
async def reconciliation(request: web.Request) -> web.StreamResponse:
    """Every check, with what it has found and repaired."""
    return _answer(request)


@operators_only
async def look(request: web.Request) -> web.StreamResponse:
    """Have every check look at everything; the answer comes when all have."""
    await request.app[FRONT].checks.look(is_whole=True)
    return _answer(request)


def _answer(request: web.Request) -> web.Response:
    tallies = request.app[FRONT].checks.tallies()
    return web.json_response({"checks": [_check(tally) for tally in tallies]})


def _check(tally: Tally) -> dict[str, Any]:
    shown = asdict(tally)
    for finding in shown["open"]:
        del finding["is_repaired"]
    return shown


ROUTES = [
    web.get("/v1/reconciliation", reconciliation),
    web.post("/v1/reconciliation", look),
]
