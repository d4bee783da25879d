"""A control plane and a runner over real gRPC, a real store, and a double of TorchServe."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from handlers.model_config import ModelConfig, Source
from handlers.scale_section import Scale
from scheduler.autoscaler.leader import Leader
from scheduler.autoscaler.scaler import Scaler
from scheduler.autoscaler.sidecar import Sidecar
from scheduler.bulk_book import BulkBook
from scheduler.clock import SteadyClock, SystemClock
from scheduler.dispatcher.service import SERVER_OPTIONS, Dispatcher
from scheduler.fair_queue import FairQueue
from scheduler.flow import DEFAULT_CLASS
from scheduler.moves import Preemption, Rules
from scheduler.node_book import NodeBook
from scheduler.operations import Operations
from scheduler.policies import virtual_time
from scheduler.reconciliation.base import Parts
from scheduler.reconciliation.checks import all_checks
from scheduler.reconciliation.service import Reconciliation
from scheduler.registry import Registry
from scheduler.rpc import plait_pb2_grpc as rpc
from scheduler.runner.service import Identity, Runner
from scheduler.speedometer import Speedometer
from scheduler.stores import sqlite
from scheduler.task import Submission, Task
from scheduler.task_book import TaskBook
from scheduler.testing.torchserve import FakeTorchServe
from scheduler.torchserve.endpoint import Endpoint
from scheduler.torchserve.inference import Inference
from scheduler.torchserve.management import Management

REPLICA = "counting__r0"
#: Replicas there may be.
NUM_FOLDERS = 3
CLOCK = SystemClock()


def config(num_replicas: int = 1, scale: Scale | None = None) -> ModelConfig:
    return ModelConfig(
        name="counting",
        task="generate",
        source=Source("folder", "/nowhere"),
        engine="pipelined",
        dtype="float32",
        num_stages=1,
        partition=None,
        num_lanes=None,
        max_batch=4,
        max_context=1024,
        prefill_chunk=64,
        num_replicas=num_replicas,
        device_type="cpu",
        device_ids=None,
        response_timeout_s=60,
        startup_timeout_s=60,
        scale=scale,
    )


@dataclass
class Running:
    """Something that runs as a task and is stopped, or cut off, at will."""

    tasks: list[asyncio.Task[Any]] = field(default_factory=list)

    def start(self, work: Coroutine[Any, Any, Any]) -> None:
        self.tasks.append(asyncio.create_task(work))

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.tasks.clear()


class Control(Running):
    """A control plane without a gateway."""

    def __init__(self, folder: Path, port: int) -> None:
        super().__init__()
        self.folder, self.port = folder, port
        self.lease_ttl_s = 10.0
        #: When the next opening has running work make room; None: never.
        self.preemption: Preemption | None = None
        #: How the next opening scales its model; None: one replica.
        self.scale: Scale | None = None

    async def open(self) -> None:
        self.store = sqlite.Store(self.folder / "plait.db")
        queue = FairQueue(virtual_time.Policy())
        rules = Rules(queue, self.lease_ttl_s, 5, preemption=self.preemption)
        clock = SteadyClock(CLOCK)
        self.book = TaskBook(self.store, clock, lease_ttl_s=self.lease_ttl_s, rules=rules)
        self.operations = Operations(self.book.ledger, self.book.rules.queue)
        nodes = NodeBook(self.book.ledger, secrets.token_hex(4))
        self.dispatcher = Dispatcher(
            self.book, nodes, clock, lease_ttl_s=self.lease_ttl_s, heartbeat_s=0.2, poll_s=0.1
        )
        self.registry = Registry(
            nodes, clock, self.dispatcher, lease_ttl_s=self.lease_ttl_s, look_s=0.5
        )
        await self.registry.open()
        configs = {"counting": config(scale=self.scale)}
        self.speedometer = Speedometer(self.book.ledger, self.dispatcher)
        scaler = Scaler(configs, self.book.ledger, self.speedometer, period_s=0.2)
        leader = Leader(nodes, clock, term_s=1.0)
        sidecar = Sidecar(
            configs, scaler, self.registry, leader, self.book.clear, clock, reconcile_s=0.2
        )
        self.book.ledger.on_queued(sidecar.has_queued)
        bulks = BulkBook(self.book.ledger, rules, self.book.new_id)
        parts = Parts(
            self.book, bulks, nodes, clock, self.dispatcher, lambda: sidecar.plan, heartbeat_s=0.2
        )
        self.reconciliation = Reconciliation(all_checks(parts), clock, tick_s=0.1)
        await self.reconciliation.look()
        self.start(self.dispatcher.run())
        self.start(self.registry.run())
        self.start(self.reconciliation.run())
        self.start(sidecar.run())
        self.start(self.speedometer.run())
        self.server = grpc.aio.server(options=SERVER_OPTIONS)
        rpc.add_RunnerServiceServicer_to_server(self.dispatcher, self.server)
        assert self.server.add_insecure_port(f"127.0.0.1:{self.port}") == self.port
        await self.server.start()

    async def close(self) -> None:
        await self.server.stop(0)
        await self.stop()
        await self.store.close()


class Node(Running):
    """A runner beside a TorchServe."""

    def __init__(self, folder: Path, port: int) -> None:
        super().__init__()
        self.folder, self.port = folder, port
        store = folder / "archives"
        for index in range(NUM_FOLDERS):
            manifest = store / f"counting__r{index}" / "MAR-INF" / "MANIFEST.json"
            manifest.parent.mkdir(parents=True)
            manifest.write_text("{}")
        self.torchserve = FakeTorchServe(folder / "state", store)

    def open(self) -> None:
        endpoint = Endpoint(self.folder / "state")
        self.inference, self.management = Inference(endpoint), Management(endpoint, CLOCK)
        self.runner = Runner(
            Identity("runner-1", "node-1"),
            f"127.0.0.1:{self.port}",
            self.inference,
            self.management,
            {"counting": config()},
            self.folder / "archives",
            CLOCK,
            poll_s=0.1,
        )
        self.start(self.runner.run())

    async def close(self) -> None:
        await self.stop()
        await self.inference.close()
        await self.management.close()

    async def vanish(self) -> None:
        """End as a runner that is killed does: without a word."""

        async def say_nothing() -> None: ...

        self.runner._hand_back = say_nothing
        await self.close()


@dataclass
class System:
    control: Control
    node: Node

    async def submit(
        self,
        prompt: str = "x",
        tokens: int = 20,
        resume: str = "close",
        priority_class: str = DEFAULT_CLASS,
        **fields: Any,
    ) -> Task:
        document = {"prompt": prompt, "max_new_tokens": tokens, **fields}
        submission = Submission(
            "ann", "counting", document, 1, resume=resume, priority_class=priority_class
        )
        task, _ = await self.control.book.submit(submission)
        return task

    async def final(self, task_id: str) -> Task:
        async with asyncio.timeout(15):
            async for event in self.control.book.watch(task_id):
                if event.kind == "end":
                    assert event.task is not None
                    return event.task
        raise AssertionError("the events ended without an end")

    async def until_tokens(self, task_id: str, count: int) -> None:
        async with asyncio.timeout(10):
            async for event in self.control.book.watch(task_id):
                if event.cursor >= count:
                    return

    async def tokens(self, task_id: str) -> list[int]:
        return [t for c in await self.control.book.chunks(task_id) for t in c.token_ids]

    async def outcomes(self, task_id: str) -> list[str]:
        return [attempt.outcome for attempt in await self.control.book.attempts(task_id)]


@asynccontextmanager
async def running_system(
    folder: Path, port: int, monkeypatch: Any, scale: Scale | None = None
) -> AsyncIterator[System]:
    """A control plane and a node whose first replica is being started."""
    monkeypatch.setattr(
        "scheduler.runner.replicas.build_replica",
        lambda config, store, index, device_ids: store / f"{config.name}__r{index}",
    )
    system = System(Control(folder, port), Node(folder, port))
    system.control.scale = scale
    await system.node.torchserve.start()
    await system.control.open()
    system.node.open()
    try:
        yield system
    finally:
        await system.node.close()
        await system.control.close()
        await system.node.torchserve.stop()
