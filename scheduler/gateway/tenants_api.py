"""Tenants as operators see and set them: weights, quotas, what each has and was served.

What is set holds from the next submission and the next claim on, at every control plane. A tenant
may look at itself.
"""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web

from scheduler.errors import InvalidRequest
from scheduler.gateway import views
from scheduler.gateway.http_request import CALLER, FRONT, json_body, operators_only
from scheduler.gateway.submission import parse_class, parse_tenant
from scheduler.operations import MAX_QUOTA, TenantChange

#: A tenant without an entry has weight 1, which is this many thousandths.
UNIT_WEIGHT: Final = 1000
MAX_WEIGHT: Final = 1000
#: Quotas; null removes one.
QUOTA_FIELDS: Final = ("max_queued", "max_in_flight", "cost_per_minute")
TENANT_FIELDS: Final = ("weight", *QUOTA_FIELDS, "classes")


@operators_only
async def tenants(request: web.Request) -> web.StreamResponse:
    """Every tenant for which something was set or that was served, with what it was served."""
    front = request.app[FRONT]
    listed = [views.tenant(each) for each in await front.operations.tenants(list(front.models))]
    return web.json_response({"tenants": listed})


async def tenant(request: web.Request) -> web.StreamResponse:
    """One tenant; one for which nothing was set has the defaults."""
    return await _told(request, _readable(request))


@operators_only
async def set_tenant(request: web.Request) -> web.StreamResponse:
    """Set what is given of a tenant; what is left out stays as it is."""
    name = parse_tenant(request.match_info["tenant"], "tenant")
    change = parse_change(await json_body(request, TENANT_FIELDS))
    await request.app[FRONT].operations.set_tenant(name, change)
    return await _told(request, name)


async def weight(request: web.Request) -> web.StreamResponse:
    """A tenant's weight; one that nobody set is 1."""
    name = _readable(request)
    found = (await request.app[FRONT].operations.tenant(name)).tenant
    return web.json_response({"tenant": name, "weight": found.weight_permille / UNIT_WEIGHT})


@operators_only
async def set_weight(request: web.Request) -> web.StreamResponse:
    """Set a tenant's share, relative to 1."""
    name = parse_tenant(request.match_info["tenant"], "tenant")
    permille = parse_permille((await json_body(request, ("weight",))).get("weight"), "weight")
    await request.app[FRONT].operations.set_tenant(name, TenantChange(permille))
    return web.json_response({"tenant": name, "weight": permille / UNIT_WEIGHT})


def parse_change(fields: dict[str, Any]) -> TenantChange:
    """What a request asks to set of a tenant.

    Raises:
        InvalidRequest: nothing is given, or a field is of the wrong type or out of range.
    """
    if not fields:
        raise InvalidRequest(
            f"body: give at least one of: {', '.join(TENANT_FIELDS)}", field="body"
        )
    given: dict[str, Any] = {
        name: _quota(name, v) for name, v in fields.items() if name in QUOTA_FIELDS
    }
    if "weight" in fields:
        given["weight_permille"] = parse_permille(fields["weight"], "weight")
    if "classes" in fields:
        given["classes"] = _classes(fields["classes"])
    return TenantChange(**given)


def parse_permille(given: object, field: str) -> int:
    """A weight or a factor, in thousandths."""
    allowed = f"a number from 0.001 to {MAX_WEIGHT}"
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise InvalidRequest(f"{field}: must be {allowed}, not {given!r:.40}", field=field)
    if not 0.001 <= given <= MAX_WEIGHT:
        raise InvalidRequest(f"{field}: is {given!r:.40}; allowed is {allowed}", field=field)
    return round(given * UNIT_WEIGHT)


def _quota(field: str, given: object) -> int | None:
    if given is None:
        return None
    allowed = f"a whole number from 1 to {MAX_QUOTA}, or null for no limit"
    if isinstance(given, bool) or not isinstance(given, int) or not 1 <= given <= MAX_QUOTA:
        raise InvalidRequest(f"{field}: must be {allowed}, not {given!r:.40}", field=field)
    return given


def _classes(given: object) -> tuple[str, ...] | None:
    if given is None:
        return None
    if not isinstance(given, list):
        message = f"must be a list of classes, or null for all, not {given!r:.40}"
        raise InvalidRequest(f"classes: {message}", field="classes")
    return tuple(dict.fromkeys(parse_class(each) for each in given))


def _readable(request: web.Request) -> str:
    """The tenant that is asked about: one's own, or an operator asks."""
    name = parse_tenant(request.match_info["tenant"], "tenant")
    key = request[CALLER].key
    if key is None or key.tenant != name:
        request[CALLER].require_operator()
    return name


async def _told(request: web.Request, name: str) -> web.Response:
    return web.json_response(views.tenant(await request.app[FRONT].operations.tenant(name)))


ROUTES = [
    web.get("/v1/tenants", tenants),
    web.get("/v1/tenants/{tenant}", tenant),
    web.patch("/v1/tenants/{tenant}", set_tenant),
    web.get("/v1/tenants/{tenant}/weight", weight),
    web.put("/v1/tenants/{tenant}/weight", set_weight),
]
