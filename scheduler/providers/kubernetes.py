"""Containers that are the pods of one Deployment or StatefulSet.

The number of pods is set through the ``scale`` subresource, so a service account that may ``get``
and ``update`` that, and ``list`` and ``patch`` pods, is all it takes. A replaced scale carries the
resource version that was read: of two control planes that change it at once one is refused, and
looks again. Which pod of a Deployment goes first is told by its deletion cost; of a StatefulSet it
is always the last.

Pods that have ended are no containers: their controller starts others in their place.

What the client answers is read as ``Any``: in its types every field of a pod may be absent.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp
from kubernetes.aio import client
from kubernetes.aio import config as kubeconfig
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.config import ConfigException

from handlers.value_checks import Check, text
from scheduler.providers.base import (
    Capabilities,
    Container,
    ContainerState,
    ProviderConfig,
    ProviderError,
    ProviderRefused,
    ProviderUnavailable,
    Surroundings,
    Terms,
    bounded,
    error_of,
)

_KINDS: Final = ("deployment", "statefulset")


def _workload(value: object) -> str | None:
    if isinstance(value, str):
        kind, _, name = value.partition("/")
        if kind in _KINDS and name:
            return None
    return "must be deployment/<name> or statefulset/<name>"


SETTINGS: Final[Mapping[str, Check]] = {
    "workload": _workload,
    "namespace": text,
    # URL of the API server; without it the cluster this runs in, or what the kubeconfig says.
    "server": text,
    "ca_file": text,
    "kubeconfig": text,
    "context": text,
}
REQUIRED: Final = ("workload",)

_DELETION_COST: Final = "controller.kubernetes.io/pod-deletion-cost"
#: Of a pod that goes first; others have 0.
_LEAST_COST: Final = "-2147483647"
_INSTANCE_TYPE: Final = "node.kubernetes.io/instance-type"


def secrets(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """A bearer token, where no kubeconfig and no cluster around this has the credentials."""
    return ("token",) if "server" in settings else ()


class Provider:
    """One workload of a cluster."""

    def __init__(
        self,
        config: ProviderConfig,
        surroundings: Surroundings,  # noqa: ARG002  # its nodes are told by the pod's template
    ) -> None:
        self._config = config
        self._namespace: str = config.settings.get("namespace", "default")
        self._kind, _, self._name = config.settings["workload"].partition("/")
        self.capabilities = Capabilities(removes_any=self._kind == "deployment", replaces_lost=True)
        self._api: client.ApiClient | None = None

    def __repr__(self) -> str:
        return f"<kubernetes.Provider {self._config.name} {self._kind}/{self._name}>"

    async def containers(self) -> Sequence[Container]:
        async with self._asking("list pods") as api:
            return [_container(pod) for pod in await self._pods(api, await self._scale(api))]

    async def create(self, key: str, count: int) -> None:  # noqa: ARG002  # the count is the key
        async with self._asking("scale up") as api:
            scale = await self._scale(api)
            if (scale.spec.replicas or 0) < count:
                await self._set(api, scale, count)

    async def remove(self, container_id: str, count: int) -> None:
        async with self._asking("scale down") as api:
            scale = await self._scale(api)
            pods = await self._pods(api, scale)
            is_there = any(pod.metadata.name == container_id for pod in pods)
            if not is_there or (scale.spec.replicas or 0) <= count:
                return
            if self._kind == "deployment":
                await client.CoreV1Api(api).patch_namespaced_pod(
                    container_id,
                    self._namespace,
                    {"metadata": {"annotations": {_DELETION_COST: _LEAST_COST}}},
                    # The client's own choice is a JSON patch, which is a list.
                    _content_type="application/merge-patch+json",
                )
            await self._set(api, scale, count)

    async def terms(self) -> Terms:
        return Terms()

    async def close(self) -> None:
        if self._api is not None:
            await self._api.close()  # type: ignore[no-untyped-call]  # generated

    # -- the API

    @asynccontextmanager
    async def _asking(self, what: str) -> AsyncIterator[client.ApiClient]:
        """A connected client; whatever goes wrong with it becomes a ProviderError."""
        what = f"{self._config.name}: {what} of {self._kind}/{self._name} in {self._namespace}"
        try:
            async with bounded(what):
                if self._api is None:
                    self._api = client.ApiClient(await self._configuration())
                yield self._api
        except ApiException as error:
            raise _told(error, what) from error
        except (aiohttp.ClientError, OSError) as error:
            raise ProviderUnavailable(f"{what}: {error}") from error
        except ConfigException as error:
            raise ProviderRefused(f"{what}: {error}") from error

    async def _configuration(self) -> client.Configuration:
        settings, configuration = self._config.settings, client.Configuration()
        if (server := settings.get("server")) is not None:
            configuration.host = server.rstrip("/")
            configuration.ssl_ca_cert = settings.get("ca_file")
            if token := self._config.secrets.get("token"):
                configuration.api_key = {"BearerToken": f"Bearer {token}"}
        elif "kubeconfig" in settings or "context" in settings:
            await kubeconfig.load_kube_config(  # type: ignore[no-untyped-call]  # it has no types
                config_file=settings.get("kubeconfig"),
                context=settings.get("context"),
                client_configuration=configuration,
            )
        else:
            kubeconfig.load_incluster_config(  # type: ignore[no-untyped-call]  # as above
                client_configuration=configuration
            )
        return configuration

    async def _scale(self, api: client.ApiClient) -> Any:
        apps = client.AppsV1Api(api)
        read = (
            apps.read_namespaced_deployment_scale
            if self._kind == "deployment"
            else apps.read_namespaced_stateful_set_scale
        )
        return await read(self._name, self._namespace)

    async def _set(self, api: client.ApiClient, scale: Any, count: int) -> None:
        apps = client.AppsV1Api(api)
        replace = (
            apps.replace_namespaced_deployment_scale
            if self._kind == "deployment"
            else apps.replace_namespaced_stateful_set_scale
        )
        scale.spec.replicas = count
        await replace(self._name, self._namespace, scale)

    async def _pods(self, api: client.ApiClient, scale: Any) -> list[Any]:
        """Those that have not ended, the one that goes last first."""
        selector = scale.status.selector if scale.status is not None else None
        if not selector:
            raise ProviderRefused(f"{self._config.name}: the scale of {self._name} selects no pods")
        listed: Any = await client.CoreV1Api(api).list_namespaced_pod(
            self._namespace, label_selector=selector
        )
        alive = [pod for pod in listed.items if pod.status.phase not in ("Failed", "Succeeded")]
        return sorted(alive, key=_age if self._kind == "deployment" else _ordinal)


def _age(pod: Any) -> tuple[Any, ...]:
    return pod.metadata.creation_timestamp, pod.metadata.name


def _ordinal(pod: Any) -> tuple[Any, ...]:
    number = pod.metadata.name.rpartition("-")[2]
    return (int(number) if number.isdecimal() else -1), pod.metadata.name


def _container(pod: Any) -> Container:
    statuses = pod.status.container_statuses or []
    num_restarts = sum(status.restart_count for status in statuses)
    if pod.metadata.deletion_timestamp is not None:
        state, reason = ContainerState.STOPPING, "being deleted"
    elif pod.status.phase == "Running" and all(status.state.running for status in statuses):
        state, reason = ContainerState.RUNNING, ""
    else:
        state, reason = ContainerState.STARTING, _reason(pod, statuses)
    return Container(
        pod.metadata.name,
        state,
        reason,
        incarnation=f"{pod.metadata.uid}/{num_restarts}",
        node_class=(pod.spec.node_selector or {}).get(_INSTANCE_TYPE, ""),
    )


def _reason(pod: Any, statuses: Sequence[Any]) -> str:
    """Why a pod does not run yet: what its containers wait for, else the scheduler."""
    for status in statuses:
        if (waiting := status.state.waiting) is not None:
            return ": ".join(filter(None, (waiting.reason, waiting.message)))
    for condition in pod.status.conditions or []:
        if condition.status == "False" and condition.message:
            return f"{condition.reason}: {condition.message}"
    return str(pod.status.phase)


def _told(error: ApiException, what: str) -> ProviderError:
    try:
        said = json.loads(error.body or "")["message"]
    except (TypeError, ValueError, KeyError):
        said = error.reason
    headers = error.headers or {}
    return error_of(error.status or 500, f"{what}: {said}", headers.get("Retry-After"))
