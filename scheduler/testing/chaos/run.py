"""Runs a scenario on a cluster and writes its history down."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

import aiohttp

from scheduler.runner.service import load_runner_id
from scheduler.testing.chaos.cluster import MODEL, Cluster
from scheduler.testing.chaos.faults import Kind, Missed
from scheduler.testing.chaos.history import Fault, History, Record, Sample
from scheduler.testing.chaos.load import Clients
from scheduler.testing.chaos.scenario import TENANTS, Planned, Rescale, Scenario
from scheduler.testing.chaos.stored import read_diary, read_store

#: Seconds for everything to be up at first.
_START_WITHIN_S: Final = 300.0
#: Seconds without the end of any task after which the rest is given up, once nothing disturbs
#: them any more.
_PATIENCE_S: Final = 120.0
_SAMPLE_S: Final = 1.0
_LOOK_TIMEOUT: Final = aiohttp.ClientTimeout(total=2.0)


class Run:
    """One run of a scenario."""

    def __init__(
        self,
        scenario: Scenario,
        kinds: Mapping[str, Kind],
        cluster: Cluster,
        tell: Callable[[str], None],
    ) -> None:
        self.history = History()
        #: Planned faults that found nothing to hit.
        self.num_missed = 0
        self._scenario, self._kinds, self._cluster, self._tell = scenario, kinds, cluster, tell

    async def run(self) -> History:
        """All of it; what was started is gone afterwards, also when this is cancelled."""
        try:
            await self._cluster.start()
            async with aiohttp.ClientSession(timeout=_LOOK_TIMEOUT) as session:
                await self._until_ready(session)
                await self._disturb(session)
        finally:
            await self._cluster.stop()
        self.history.stored = read_store(self._cluster.store)
        for node in self._cluster.nodes:
            self.history.nodes[load_runner_id(node.state)] = node.name
            notes = read_diary(node.diary, node.name, self.history.began)
            self.history.records += notes
        return self.history

    async def _answer_references(self) -> list[Record]:
        """Have the references answered by an undisturbed cluster; what their clients saw."""
        history = History()
        address = f"http://127.0.0.1:{self._cluster.front.port}"
        clients = Clients(address, history, self._scenario.seed, "reference-")
        try:
            await clients.run(self._scenario.references)
            await clients.until_all_ended(_PATIENCE_S)
        finally:
            await clients.close()
        length_s = history.now()
        # They were before the run began.
        return [replace(record, at=record.at - length_s) for record in history.records]

    async def _disturb(self, session: aiohttp.ClientSession) -> None:
        references = await self._answer_references()
        self.history = History(records=references)
        address = f"http://127.0.0.1:{self._cluster.front.port}"
        clients = Clients(address, self.history, self._scenario.seed)
        sampling = asyncio.create_task(self._sample(session))
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(clients.run(self._scenario.arrivals))
                group.create_task(self._rescale(session))
                for planned in self._scenario.faults:
                    group.create_task(self._strike(planned))
            self._tell(f"{clients.num_unfinished} tasks are left; nothing disturbs them any more")
            await clients.until_all_ended(_PATIENCE_S)
        finally:
            sampling.cancel()
            await asyncio.gather(sampling, return_exceptions=True)
            await clients.close()

    async def _strike(self, planned: Planned) -> None:
        await self._until(planned.at_s)
        strike = self._kinds[planned.kind].strike
        began = self.history.now()
        try:
            with strike(self._cluster, planned.target, planned.amount):
                await asyncio.sleep(planned.duration_s)
        except (Missed, ProcessLookupError) as missed:
            self.num_missed += 1
            self._tell(f"{began:6.1f} s  {planned.kind}, {planned.target}: missed, {missed}")
            return
        now = self.history.now()
        self.history.add(Fault(began, now, planned.kind, planned.target))
        self._tell(f"{began:6.1f} s  {planned.kind}, {planned.target}, {now - began:.1f} s")

    async def _rescale(self, session: aiohttp.ClientSession) -> None:
        for rescale in self._scenario.rescales:
            await self._until(rescale.at_s)
            await self._ask(session, rescale)

    async def _ask(self, session: aiohttp.ClientSession, rescale: Rescale) -> None:
        path = f"/v1/models/{MODEL}/replicas"
        body = {"replicas": rescale.num_replicas}
        while (await self._call(session, "PUT", path, body)) is None:
            await asyncio.sleep(0.5)

    async def _until(self, at_s: float) -> None:
        await asyncio.sleep(max(0.0, at_s - self.history.now()))

    # -- looking on

    async def _until_ready(self, session: aiohttp.ClientSession) -> None:
        async with asyncio.timeout(_START_WITHIN_S):
            # Asked for once all are there, so that every node gets one.
            while await self._num_connected(session) < len(self._cluster.nodes):
                await asyncio.sleep(0.2)
            await self._ask(session, Rescale(0.0, len(self._cluster.nodes)))
            while not await self._is_ready(session):
                await asyncio.sleep(0.2)
            for tenant in TENANTS:
                path = f"/v1/tenants/{tenant.name}/weight"
                while await self._call(session, "PUT", path, {"weight": tenant.weight}) is None:
                    await asyncio.sleep(0.2)
        self._tell(f"{len(self._cluster.nodes)} nodes are ready")

    async def _num_connected(self, session: aiohttp.ClientSession) -> int:
        workers = await self._call(session, "GET", "/v1/nodes")
        return sum(node["connected"] for node in workers["nodes"]) if workers else 0

    async def _is_ready(self, session: aiohttp.ClientSession) -> bool:
        model = await self._call(session, "GET", f"/v1/models/{MODEL}")
        return model is not None and _num_ready(model) == len(self._cluster.nodes)

    async def _sample(self, session: aiohttp.ClientSession) -> None:
        while True:
            at = self.history.now()
            num_whole = self._cluster.num_whole_nodes()
            model = await self._call(session, "GET", f"/v1/models/{MODEL}")
            workers = await self._call(session, "GET", "/v1/nodes")
            connected = workers and sum(node["connected"] for node in workers["nodes"])
            in_flight = workers and sum(node["in_flight"] for node in workers["nodes"])
            self.history.add(
                Sample(
                    at,
                    connected,
                    model and _num_ready(model),
                    model and model["queued"],
                    in_flight,
                    num_whole,
                )
            )
            await asyncio.sleep(max(0.0, at + _SAMPLE_S - self.history.now()))

    async def _call(
        self, session: aiohttp.ClientSession, method: str, path: str, body: Any = None
    ) -> Any:
        """The answer, or None when there is none."""
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError, ValueError):
            async with session.request(method, self._cluster.address + path, json=body) as answer:
                if answer.status == 200:
                    return await answer.json()
        return None


def _num_ready(model: Any) -> int:
    return sum(r["state"] == "ready" and r["connected"] for r in model["replicas"])
