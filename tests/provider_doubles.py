"""Providers' APIs as HTTP servers on loopback, which the real providers of the family talk to.

What they answer is in ``tests/data``, whose files say where it is documented; here it is filled in.
They fail as such APIs do: with a status, after having done what they were asked, or by listing what
was so a while ago.
"""

from __future__ import annotations

import asyncio
import copy
import json
import uuid
from pathlib import Path
from typing import Any

from aiohttp import web

DATA = Path(__file__).parent / "data"
TOKEN = "t0ps3cret"


def answer(name: str) -> Any:
    """A documented answer."""
    return json.loads((DATA / name).read_text())


class Api:
    """An API with containers behind it, which come up when the test says so."""

    def __init__(self) -> None:
        #: The next requests that change something, or with ``fails_reads`` any, get this status.
        self.failures: list[int] = []
        self.fails_reads = False
        #: Whether a request that fails has had its effect.
        self.fails_afterwards = False
        self.retry_after: str | None = None
        #: Whether it takes requests and never answers.
        self.is_silent = False
        #: What is listed while it lags; None: what is so.
        self._seen: list[Any] | None = None
        self.containers: list[Any] = []
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def start(self) -> None:
        app = web.Application(middlewares=[self._fail])
        self.add_routes(app.router)
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def add_routes(self, router: web.UrlDispatcher) -> None:
        raise NotImplementedError

    def problem(self, status: int) -> Any:
        raise NotImplementedError

    def is_allowed(self, request: web.Request) -> bool:
        raise NotImplementedError

    def lag(self) -> None:
        """List from now on what is so now."""
        self._seen = copy.deepcopy(self.containers)

    def catch_up(self) -> None:
        self._seen = None

    def listed(self) -> list[Any]:
        return self.containers if self._seen is None else self._seen

    @web.middleware
    async def _fail(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if self.is_silent:
            await asyncio.get_running_loop().create_future()
        if not self.is_allowed(request):
            return web.json_response(self.problem(401), status=401)
        if not self.failures or (request.method == "GET" and not self.fails_reads):
            response: web.StreamResponse = await handler(request)
            return response
        status = self.failures.pop(0)
        if self.fails_afterwards:
            await handler(request)
        headers = {} if self.retry_after is None else {"Retry-After": self.retry_after}
        return web.json_response(self.problem(status), status=status, headers=headers)


class Kubernetes(Api):
    """A cluster with one workload, and the controller that keeps its pods at their number."""

    def __init__(self, kind: str) -> None:
        """``kind``: deployment or statefulset."""
        super().__init__()
        self.kind = kind
        self.scale = answer("kubernetes/scale.json")
        self._num_made = 0

    def add_routes(self, router: web.UrlDispatcher) -> None:
        workload = f"/apis/apps/v1/namespaces/serving/{self.kind}s/plait-node/scale"
        router.add_get(workload, self._read)
        router.add_put(workload, self._replace)
        router.add_get("/api/v1/namespaces/serving/pods", self._list)
        router.add_patch("/api/v1/namespaces/serving/pods/{name}", self._patch)

    def is_allowed(self, request: web.Request) -> bool:
        return request.headers.get("Authorization") == f"Bearer {TOKEN}"

    def problem(self, status: int) -> Any:
        return {**answer("kubernetes/status.json"), "code": status}

    def come_up(self) -> None:
        for pod in self.containers:
            pod["status"] = {
                "phase": "Running",
                "containerStatuses": [
                    {
                        "name": "node",
                        "image": "registry.example/plait:1",
                        "imageID": "",
                        "ready": True,
                        "restartCount": 0,
                        "state": {"running": {"startedAt": "2026-11-20T10:01:00Z"}},
                    }
                ],
            }

    def lose(self, name: str) -> None:
        """A machine is gone: its pod is, and another takes its place."""
        self.containers = [pod for pod in self.containers if pod["metadata"]["name"] != name]
        self._keep()

    def _keep(self) -> None:
        wanted = self.scale["spec"]["replicas"]
        while len(self.containers) > wanted:
            self.containers.remove(self._victim())
        while len(self.containers) < wanted:
            self.containers.append(self._new())

    def _victim(self) -> Any:
        if self.kind == "statefulset":
            return max(self.containers, key=lambda pod: int(pod["metadata"]["name"][-1]))
        cost = "controller.kubernetes.io/pod-deletion-cost"
        return min(
            self.containers, key=lambda pod: int(pod["metadata"]["annotations"].get(cost, 0))
        )

    def _new(self) -> Any:
        pod = answer("kubernetes/pod.json")
        names = {each["metadata"]["name"] for each in self.containers}
        if self.kind == "statefulset":
            name = next(n for i in range(10) if (n := f"plait-node-{i}") not in names)
        else:
            name = f"plait-node-7c9d8f6b5-{self._num_made:05}"
        self._num_made += 1
        pod["metadata"] |= {"name": name, "uid": str(uuid.uuid4())}
        return pod

    async def _read(self, request: web.Request) -> web.Response:
        return web.json_response(self.scale)

    async def _replace(self, request: web.Request) -> web.Response:
        given = await request.json()
        metadata = self.scale["metadata"]
        if given["metadata"]["resourceVersion"] != metadata["resourceVersion"]:
            return web.json_response(self.problem(409), status=409)
        metadata["resourceVersion"] = str(int(metadata["resourceVersion"]) + 1)
        self.scale["spec"]["replicas"] = given["spec"]["replicas"]
        self._keep()
        return web.json_response(self.scale)

    async def _list(self, request: web.Request) -> web.Response:
        assert request.query["labelSelector"] == self.scale["status"]["selector"]
        body = {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": self.listed()}
        return web.json_response(body)

    async def _patch(self, request: web.Request) -> web.Response:
        assert request.content_type == "application/merge-patch+json"
        given = await request.json()
        for pod in self.containers:
            if pod["metadata"]["name"] == request.match_info["name"]:
                pod["metadata"]["annotations"] |= given["metadata"]["annotations"]
                return web.json_response(pod)
        return web.json_response(self.problem(404), status=404)


class Salad(Api):
    """A SaladCloud organization with one container group."""

    def __init__(self) -> None:
        super().__init__()
        self.group = answer("salad/container_group.json")

    def add_routes(self, router: web.UrlDispatcher) -> None:
        group = "/organizations/acme/projects/serving/containers/plait-node"
        router.add_get(group, self._read)
        router.add_patch(group, self._update)
        router.add_post(f"{group}/start", self._start)
        router.add_get(f"{group}/instances", self._list)
        router.add_patch(f"{group}/instances/{{id}}", self._update_instance)
        router.add_get("/organizations/acme/quotas", self._quotas)
        router.add_get("/organizations/acme/gpu-classes", self._gpu_classes)

    def is_allowed(self, request: web.Request) -> bool:
        return request.headers.get("Salad-Api-Key") == TOKEN

    def problem(self, status: int) -> Any:
        return {**answer("salad/problem.json"), "status": status}

    def come_up(self) -> None:
        for instance in self.containers:
            instance |= {"state": "running", "ready": True, "started": True}

    def lose(self, instance_id: str) -> None:
        """Its machine leaves; the group starts another instance elsewhere."""
        self.containers = [each for each in self.containers if each["id"] != instance_id]
        self._keep()

    def _keep(self) -> None:
        wanted = self.group["replicas"]
        if self.group["current_state"]["status"] == "stopped":
            wanted = 0
        while len(self.containers) > wanted:
            self.containers.remove(min(self.containers, key=lambda each: each["deletion_cost"]))
        while len(self.containers) < wanted:
            new = {"id": str(uuid.uuid4()), "machine_id": str(uuid.uuid4())}
            self.containers.append({**answer("salad/instance.json"), **new})

    async def _read(self, request: web.Request) -> web.Response:
        return web.json_response(self.group)

    async def _update(self, request: web.Request) -> web.Response:
        assert request.content_type == "application/merge-patch+json"
        self.group["replicas"] = (await request.json())["replicas"]
        self._keep()
        return web.json_response(self.group, content_type="application/merge-patch+json")

    async def _start(self, request: web.Request) -> web.Response:
        self.group["current_state"]["status"] = "running"
        self._keep()
        return web.Response(status=202)

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response({"instances": self.listed()})

    async def _update_instance(self, request: web.Request) -> web.Response:
        assert request.content_type == "application/merge-patch+json"
        for instance in self.containers:
            if instance["id"] == request.match_info["id"]:
                instance.update(await request.json())
                return web.json_response(instance)
        return web.json_response(self.problem(404), status=404)

    async def _quotas(self, request: web.Request) -> web.Response:
        quotas = answer("salad/quotas.json")
        # Another group of the organization has five.
        quotas["container_groups_quotas"]["container_replicas_used"] = 5 + self.group["replicas"]
        return web.json_response(quotas)

    async def _gpu_classes(self, request: web.Request) -> web.Response:
        return web.json_response(answer("salad/gpu_classes.json"))
