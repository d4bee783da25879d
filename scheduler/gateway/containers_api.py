"""What operators see of providers, and of the containers they rent us."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from scheduler import records
from scheduler.container import ContainerStatus, Flakiness, ProviderStatus
from scheduler.gateway.http_request import FRONT, operators_only


@operators_only
async def providers(request: web.Request) -> web.StreamResponse:
    """Every provider, with how much it can be relied on."""
    view = request.app[FRONT].containers()
    body = {
        "providers": [_provider(each) for each in view.providers],
        "shortages": dict(view.shortages),
    }
    return web.json_response(body)


@operators_only
async def containers(request: web.Request) -> web.StreamResponse:
    """Every container that was ordered and is not gone, and those that nobody ordered."""
    view = request.app[FRONT].containers()
    body = {
        "containers": [_container(each) for each in view.containers],
        "unknown": [{"provider": name, "container": what} for name, what in view.unknown],
    }
    return web.json_response(body)


def _provider(status: ProviderStatus) -> dict[str, Any]:
    return {
        "name": status.name,
        "kind": status.kind,
        "state": status.state,
        "reason": status.reason,
        "price_per_hour": status.price_per_hour,
        "device_kind": status.device_kind,
        "num_devices": status.num_devices,
        "min_containers": status.min_containers,
        "max_containers": status.max_containers,
        "models": None if status.models is None else list(status.models),
        "labels": dict(status.labels),
        "removes_any": status.removes_any,
        "num_ordered": status.num_ordered,
        "num_up": status.num_up,
        "ledger": [_note(note) for note in status.flakiness],
    }


def _note(note: Flakiness) -> dict[str, Any]:
    fields = records.asdict(note)
    del fields["provider"]
    return {**fields, "losses_per_hour": note.rate}


def _container(status: ContainerStatus) -> dict[str, Any]:
    order = status.order
    return {
        "provider": order.provider,
        "key": order.key,
        "state": order.state.value,
        "reason": order.reason,
        "container": order.container_id,
        "node_class": order.node_class,
        "ordered_at": order.ordered_at,
        "up_at": order.up_at,
        "leaving_at": order.leaving_at,
        "stalled_at": order.stalled_at,
        "provider_state": status.provider_state,
        "provider_reason": status.provider_reason,
        "runner": status.runner,
    }


ROUTES = [
    web.get("/v1/providers", providers),
    web.get("/v1/containers", containers),
]
