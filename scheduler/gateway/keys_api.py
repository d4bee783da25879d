"""Keys as operators make and revoke them.

How a key is written is told once, to who makes it, and never again: the store has its hash alone. A
key that is revoked stops working within a second, at every control plane.
"""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web

from scheduler.errors import InvalidRequest
from scheduler.gateway import views
from scheduler.gateway.http_request import FRONT, json_body, operators_only, refuse_unknown
from scheduler.gateway.submission import parse_tenant
from scheduler.keys import Key, Role

KEY_FIELDS: Final = ("tenant", "role", "name", "expires_in_s")
KEY_PARAMETERS: Final = ("tenant",)
MAX_NAME_CHARS: Final = 100
#: A hundred years.
MAX_EXPIRES_IN_S: Final = 3_155_760_000


@operators_only
async def keys(request: web.Request) -> web.StreamResponse:
    """Every key, those that were revoked included."""
    refuse_unknown(request.query, KEY_PARAMETERS)
    given = request.query.get("tenant")
    tenant = None if given is None else parse_tenant(given, "tenant")
    listed = [views.key(each) for each in await request.app[FRONT].operations.keys(tenant)]
    return web.json_response({"keys": listed})


@operators_only
async def create(request: web.Request) -> web.StreamResponse:
    """Make a key; 201, with how it is written."""
    body = await json_body(request, KEY_FIELDS)
    tenant = parse_tenant(_text(body, "tenant"), "tenant")
    role, name = _role(body.get("role", Role.TENANT.value)), _name(body.get("name", ""))
    expires_in_s = _expires_in_s(body.get("expires_in_s"))
    operations = request.app[FRONT].operations
    return _shown(*await operations.create_key(tenant, role, name, expires_in_s))


@operators_only
async def revoke(request: web.Request) -> web.StreamResponse:
    """Make a key open nothing any more; one that was revoked stays so."""
    key = await request.app[FRONT].operations.revoke_key(request.match_info["key_id"])
    return web.json_response(views.key(key))


@operators_only
async def rotate(request: web.Request) -> web.StreamResponse:
    """Put a new key in the place of one, which is revoked; 201, with how the new one is written."""
    operations = request.app[FRONT].operations
    return _shown(*await operations.rotate_key(request.match_info["key_id"]))


def _shown(key: Key, written: str) -> web.Response:
    headers = {"Cache-Control": "no-store"}
    return web.json_response({**views.key(key), "key": written}, status=201, headers=headers)


def _text(body: dict[str, Any], field: str) -> str:
    value = body.get(field)
    if not isinstance(value, str):
        raise InvalidRequest(f"{field}: must be a text", field=field)
    return value


def _role(given: object) -> Role:
    try:
        return Role(given)
    except ValueError:
        allowed = ", ".join(role.value for role in Role)
        message = f"role: {given!r:.40} is no role; allowed are: {allowed}"
        raise InvalidRequest(message, field="role") from None


def _name(given: object) -> str:
    if not isinstance(given, str) or not given.isprintable() or len(given) > MAX_NAME_CHARS:
        message = f"name: must be a text of up to {MAX_NAME_CHARS} printable characters"
        raise InvalidRequest(message, field="name")
    return given


def _expires_in_s(given: object) -> float | None:
    if given is None:
        return None
    is_number = isinstance(given, int | float) and not isinstance(given, bool)
    if not is_number or not 0 < float(given) <= MAX_EXPIRES_IN_S:  # type: ignore[arg-type]  # a number
        message = f"expires_in_s: must be seconds, more than 0 and at most {MAX_EXPIRES_IN_S}"
        raise InvalidRequest(message, field="expires_in_s")
    return float(given)  # type: ignore[arg-type]  # a number


ROUTES = [
    web.get("/v1/keys", keys),
    web.post("/v1/keys", create),
    web.delete("/v1/keys/{key_id}", revoke),
    web.post("/v1/keys/{key_id}/rotate", rotate),
]
