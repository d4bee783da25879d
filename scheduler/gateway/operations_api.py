"""What runs, and how much of it: health, models, nodes, replicas.

``/ping`` says whether the gateway can accept work, ``/ready`` whether somebody is there to do it.
"""

from __future__ import annotations

from typing import Any

from aiohttp import web

from scheduler.cluster_view import READY
from scheduler.errors import InvalidRequest
from scheduler.gateway import views
from scheduler.gateway.front import Front
from scheduler.gateway.http_request import (
    FRONT,
    json_body,
    operators_only,
    query_integer,
    refuse_unknown,
)
from scheduler.scaling import MAX_DECISIONS

MAX_REPLICAS = 1000
SCALE_PARAMETERS = ("limit",)


async def ping(request: web.Request) -> web.Response:
    """Whether the store answers."""
    if await request.app[FRONT].is_healthy():
        return web.json_response({"status": "Healthy"})
    return web.json_response({"status": "Unhealthy"}, status=503)


async def ready(request: web.Request) -> web.Response:
    """200 once every model that should have replicas has one that takes work."""
    front = request.app[FRONT]
    wanted = {name for name, n in (await front.desired_replicas()).items() if n > 0}
    nodes = [node for node in front.cluster.nodes() if node.connected]
    there = {r.model for node in nodes for r in node.replicas if r.state == READY}
    missing = sorted(wanted - there)
    body = {"ready": not missing, "waiting_for": missing}
    return web.json_response(body, status=503 if missing else 200)


async def models(request: web.Request) -> web.Response:
    """Every model, with its replicas."""
    front = request.app[FRONT]
    return web.json_response({"models": await _models(front, list(front.models))})


async def model(request: web.Request) -> web.Response:
    front = request.app[FRONT]
    config = front.model(request.match_info["model"])
    return web.json_response((await _models(front, [config.name]))[0])


@operators_only
async def nodes(request: web.Request) -> web.StreamResponse:
    """Every node, with its replicas, at whichever control plane its runner is."""
    known = request.app[FRONT].cluster.nodes()
    return web.json_response({"nodes": [views.node(node) for node in known]})


@operators_only
async def set_replicas(request: web.Request) -> web.StreamResponse:
    """Say how many replicas of a model should run."""
    front = request.app[FRONT]
    config = front.model(request.match_info["model"])
    given = (await json_body(request, ("replicas",))).get("replicas")
    if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given <= MAX_REPLICAS:
        message = f"replicas: must be a whole number from 0 to {MAX_REPLICAS}, not {given!r:.40}"
        raise InvalidRequest(message, field="replicas")
    await front.operations.set_desired_replicas(config.name, given)
    return web.json_response((await _models(front, [config.name]))[0])


@operators_only
async def give_back_replicas(request: web.Request) -> web.StreamResponse:
    """Let the model's config, or the work there is, say again how many replicas should run."""
    front = request.app[FRONT]
    config = front.model(request.match_info["model"])
    await front.operations.give_back_replicas(config.name)
    return web.json_response((await _models(front, [config.name]))[0])


@operators_only
async def scale(request: web.Request) -> web.StreamResponse:
    """How many replicas of a model should run, who says so, and the decisions that led there."""
    front = request.app[FRONT]
    config = front.model(request.match_info["model"])
    refuse_unknown(request.query, SCALE_PARAMETERS)
    limit = query_integer(request, "limit", 1, MAX_DECISIONS, 20)
    story = await front.operations.scale_story(config.name, limit)
    return web.json_response(views.scale(config, story))


async def _models(front: Front, names: list[str]) -> list[dict[str, Any]]:
    desired, queued = await front.desired_replicas(), await front.book.depth()
    nodes = front.cluster.nodes()
    return [
        views.model(front.models[name], desired[name], queued.get(name, 0), nodes) for name in names
    ]


ROUTES = [
    web.get("/ping", ping),
    web.get("/ready", ready),
    web.get("/v1/models", models),
    web.get("/v1/models/{model}", model),
    web.put("/v1/models/{model}/replicas", set_replicas),
    web.delete("/v1/models/{model}/replicas", give_back_replicas),
    web.get("/v1/models/{model}/scale", scale),
    web.get("/v1/nodes", nodes),
]
