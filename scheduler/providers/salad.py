"""Containers that are the instances of one SaladCloud container group, over its public REST API.

The group is made once, by hand or with Salad's own tools, with the image that runs ``plait node``;
here its number of replicas is set. When it shrinks, instances of the least deletion cost go first
(docs.salad.com, "Instance Deletion Cost"), so all others are made dearer before. Salad takes its
machines from people's homes: an instance whose machine leaves is started anew on another, under
another id.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import quote

import aiohttp

from handlers.value_checks import Check, text
from scheduler.providers.base import (
    MOST_CONTAINERS,
    Capabilities,
    Container,
    ContainerState,
    ProviderConfig,
    ProviderUnavailable,
    Surroundings,
    Terms,
    bounded,
    error_of,
)

SETTINGS: Final[Mapping[str, Check]] = {
    "organization": text,
    "project": text,
    "container_group": text,
    "url": text,
}
REQUIRED: Final = ("organization", "project", "container_group")

_URL: Final = "https://api.salad.com/api/public"
_STATES: Final = {
    "running": ContainerState.RUNNING,
    "stopping": ContainerState.STOPPING,
    # "allocating", "downloading" and "creating", and whatever is added to them.
}
#: Deletion cost of an instance that stays; the default is 0, and the least goes first.
_STAYS: Final = 1000
_MERGE_PATCH: Final = {"Content-Type": "application/merge-patch+json"}


def secrets(settings: Mapping[str, Any]) -> tuple[str, ...]:  # noqa: ARG001  # always the same
    """A key of the organization."""
    return ("api_key",)


class Provider:
    """One container group."""

    capabilities = Capabilities(removes_any=True, replaces_lost=True)

    def __init__(
        self,
        config: ProviderConfig,
        surroundings: Surroundings,  # noqa: ARG002  # its nodes are told by the group
    ) -> None:
        self._config = config
        parts = {name: quote(config.settings[name], safe="") for name in REQUIRED}
        url = config.settings.get("url", _URL).rstrip("/")
        self._organization = f"{url}/organizations/{parts['organization']}"
        project = f"{self._organization}/projects/{parts['project']}"
        self._group = f"{project}/containers/{parts['container_group']}"
        self._session: aiohttp.ClientSession | None = None

    def __repr__(self) -> str:
        return f"<salad.Provider {self._config.name} {self._config.settings['container_group']}>"

    async def containers(self) -> Sequence[Container]:
        async with self._asking("list instances"):
            return [_container(instance) for instance in await self._instances()]

    async def create(self, key: str, count: int) -> None:  # noqa: ARG002  # the count is the key
        async with self._asking("add a replica"):
            group = await self._call("GET", self._group)
            if group["replicas"] < count:
                await self._call("PATCH", self._group, {"replicas": count})
            if group["current_state"]["status"] == "stopped":
                await self._call("POST", f"{self._group}/start")

    async def remove(self, container_id: str, count: int) -> None:
        async with self._asking("take a replica away"):
            instances = await self._instances()
            group = await self._call("GET", self._group)
            if container_id not in {each["id"] for each in instances}:
                return
            if group["replicas"] <= count:
                return
            for each in instances:
                cost = 0 if each["id"] == container_id else _STAYS
                if each.get("deletion_cost", 0) != cost:
                    where = f"{self._group}/instances/{quote(each['id'], safe='')}"
                    await self._call("PATCH", where, {"deletion_cost": cost})
            await self._call("PATCH", self._group, {"replicas": count})

    async def terms(self) -> Terms:
        async with self._asking("look at quotas and prices"):
            quotas = await self._call("GET", f"{self._organization}/quotas")
            group = await self._call("GET", self._group)
            limits = quotas["container_groups_quotas"]
            others = limits["container_replicas_used"] - group["replicas"]
            most = max(0, limits["container_replicas_quota"] - others)
            return Terms(await self._price(group), min(most, MOST_CONTAINERS))

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _instances(self) -> list[Any]:
        found: list[Any] = (await self._call("GET", f"{self._group}/instances"))["instances"]
        return found

    async def _price(self, group: Any) -> float | None:
        """Of an hour on the dearest device that the group allows; None: of none it is told."""
        allowed = set(group["container"]["resources"].get("gpu_classes") or ())
        priority = group.get("priority") or "high"
        known = (await self._call("GET", f"{self._organization}/gpu-classes"))["items"]
        prices = [
            float(price["price"])
            for each in known
            if each["id"] in allowed
            for price in each["prices"]
            if price["priority"] == priority
        ]
        return max(prices, default=None)

    @asynccontextmanager
    async def _asking(self, what: str) -> AsyncIterator[None]:
        """Whatever goes wrong becomes a ProviderError."""
        try:
            async with bounded(f"{self._config.name}: {what}"):
                yield
        except (aiohttp.ClientError, OSError) as error:
            raise ProviderUnavailable(f"{self._config.name}: {what}: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            said = f"{self._config.name}: {what}: not the answer that is documented: {error!r}"
            raise ProviderUnavailable(said) from error

    async def _call(self, method: str, url: str, body: Any = None) -> Any:
        if self._session is None:
            key = self._config.secrets["api_key"]
            self._session = aiohttp.ClientSession(headers={"Salad-Api-Key": key})
        headers = _MERGE_PATCH if method == "PATCH" else None
        async with self._session.request(method, url, json=body, headers=headers) as answer:
            if answer.status >= 400:
                said = f"{self._config.name}: {method} {answer.url.path}: {await _detail(answer)}"
                raise error_of(answer.status, said, answer.headers.get("Retry-After"))
            return await answer.json(content_type=None) if answer.status == 200 else None


def _container(instance: Any) -> Container:
    state = _STATES.get(instance["state"], ContainerState.STARTING)
    reason = instance["state"] if state is not ContainerState.RUNNING else ""
    if instance["state"] == "downloading" and "pulling_progress" in instance:
        reason = f"downloading the image, {instance['pulling_progress']:.0f} %"
    return Container(instance["id"], state, reason, incarnation=instance["machine_id"])


async def _detail(answer: aiohttp.ClientResponse) -> str:
    """What is wrong, as the answer says it (RFC 9457)."""
    try:
        problem = await answer.json(content_type=None)
        return str(problem.get("detail") or problem.get("title") or answer.reason)
    except (ValueError, AttributeError):
        return answer.reason or ""
