"""What operators set for all tenants: priority classes, device kinds' cost, and what is kept.

Everybody may see which classes there are, for a request names one.
"""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web

from scheduler.errors import InvalidRequest
from scheduler.gateway.http_request import FRONT, json_body, operators_only
from scheduler.gateway.submission import parse_class
from scheduler.gateway.tenants_api import UNIT_WEIGHT, parse_permille

FACTOR_FIELDS: Final = ("device_kind", "factor")
PURGE_FIELDS: Final = ("finished_before_s",)
MAX_KIND_CHARS: Final = 200
#: A hundred years: more than any store is old.
MAX_AGE_S: Final = 100 * 365 * 24 * 3600.0


async def classes(request: web.Request) -> web.StreamResponse:
    """Every class with its weight, the heaviest first."""
    found = await request.app[FRONT].operations.classes()
    ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    return web.json_response({"classes": [_class(name, weight) for name, weight in ordered]})


@operators_only
async def set_class(request: web.Request) -> web.StreamResponse:
    """Set the weight of a class, which may be a new one."""
    name = parse_class(request.match_info["class"])
    permille = parse_permille((await json_body(request, ("weight",))).get("weight"), "weight")
    await request.app[FRONT].operations.set_class(name, permille)
    return web.json_response(_class(name, permille))


@operators_only
async def cost_factors(request: web.Request) -> web.StreamResponse:
    """What a weighted token costs on device kinds for which it was set."""
    found = await request.app[FRONT].operations.cost_factors()
    listed = [_factor(*key, permille) for key, permille in sorted(found.items())]
    return web.json_response({"cost_factors": listed})


@operators_only
async def set_cost_factor(request: web.Request) -> web.StreamResponse:
    """Set what a model's weighted token costs on a device kind; 1 is everybody's default."""
    front = request.app[FRONT]
    model = front.model(request.match_info["model"]).name
    body = await json_body(request, FACTOR_FIELDS)
    kind, permille = _kind(body.get("device_kind")), parse_permille(body.get("factor"), "factor")
    await front.operations.set_cost_factor(model, kind, permille)
    return web.json_response(_factor(model, kind, permille))


@operators_only
async def purge(request: web.Request) -> web.StreamResponse:
    """Remove what ended long enough ago, now."""
    front = request.app[FRONT]
    age_s = _age_s((await json_body(request, PURGE_FIELDS)).get("finished_before_s"))
    return web.json_response({"num_removed": await front.book.purge(front.now() - age_s)})


def _class(name: str, permille: int) -> dict[str, Any]:
    return {"class": name, "weight": permille / UNIT_WEIGHT}


def _factor(model: str, kind: str, permille: int) -> dict[str, Any]:
    return {"model": model, "device_kind": kind, "factor": permille / UNIT_WEIGHT}


def _kind(given: object) -> str:
    if (
        not isinstance(given, str)
        or not given.isprintable()
        or not 1 <= len(given) <= MAX_KIND_CHARS
    ):
        message = f"must be a text of 1 to {MAX_KIND_CHARS} characters, such as 'cpu'"
        raise InvalidRequest(f"device_kind: {message}", field="device_kind")
    return given


def _age_s(given: object) -> float:
    if isinstance(given, int | float) and not isinstance(given, bool) and 0 <= given <= MAX_AGE_S:
        return float(given)
    message = f"must be a number of seconds from 0 to {MAX_AGE_S:g}, not {given!r:.40}"
    raise InvalidRequest(f"finished_before_s: {message}", field="finished_before_s")


ROUTES = [
    web.get("/v1/classes", classes),
    web.put("/v1/classes/{class}", set_class),
    web.get("/v1/cost-factors", cost_factors),
    web.put("/v1/cost-factors/{model}", set_cost_factor),
    web.post("/v1/purge", purge),
]
