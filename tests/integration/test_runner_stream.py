"""Runner and control plane over real gRPC, a real store, and a double of TorchServe."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest_asyncio

from handlers.model_config import ModelConfig, Source
from scheduler.autoscaler.sidecar import Sidecar
from scheduler.clock import SystemClock
from scheduler.dispatcher.service import SERVER_OPTIONS, Dispatcher
from scheduler.rpc import plait_pb2_grpc as rpc
from scheduler.runner.service import Identity, Runner
from scheduler.stores import sqlite
from scheduler.task import Submission, Task, TaskState
from scheduler.task_book import TaskBook
from scheduler.testing.torchserve import FakeTorchServe
from scheduler.torchserve.endpoint import Endpoint
from scheduler.torchserve.inference import Inference
from scheduler.torchserve.management import Management

REPLICA = "counting__r0"
CLOCK = SystemClock()


def config(num_replicas: int = 1) -> ModelConfig:
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

    async def open(self) -> None:
        self.store = sqlite.Store(self.folder / "plait.db")
        self.book = TaskBook(self.store, CLOCK, lease_ttl_s=self.lease_ttl_s)
        self.dispatcher = Dispatcher(
            self.book, CLOCK, lease_ttl_s=self.lease_ttl_s, heartbeat_s=0.2, sweep_s=0.1
        )
        sidecar = Sidecar({"counting": config()}, self.book, self.dispatcher, reconcile_s=0.2)
        self.start(self.dispatcher.run())
        self.start(sidecar.run())
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
        (store / REPLICA / "MAR-INF").mkdir(parents=True)
        (store / REPLICA / "MAR-INF" / "MANIFEST.json").write_text("{}")
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


@dataclass
class System:
    control: Control
    node: Node

    async def submit(self, prompt: str = "x", tokens: int = 20) -> Task:
        document = {"prompt": prompt, "max_new_tokens": tokens}
        task, _ = await self.control.book.submit(Submission("ann", "counting", document, 1))
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


async def until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


@pytest_asyncio.fixture
async def system(tmp_path: Path, free_port: int, monkeypatch: Any) -> AsyncIterator[System]:
    """A control plane and a node whose one replica is being started."""
    monkeypatch.setattr(
        "scheduler.runner.replicas.build_replica",
        lambda config, store, index, device_ids: store / f"{config.name}__r{index}",
    )
    system = System(Control(tmp_path, free_port), Node(tmp_path, free_port))
    await system.node.torchserve.start()
    await system.control.open()
    system.node.open()
    try:
        yield system
    finally:
        await system.node.close()
        await system.control.close()
        await system.node.torchserve.stop()


async def test_a_task_is_generated_and_its_tokens_are_in_the_journal(system: System) -> None:
    task = await system.submit(tokens=20)

    done = await system.final(task.id)

    assert done.state is TaskState.SUCCEEDED
    assert done.result == {
        "finish_reason": "length",
        "num_prompt_tokens": 1,
        "num_output_tokens": 20,
    }
    assert await system.tokens(task.id) == list(range(20))


async def test_more_tasks_than_slots_are_all_served(system: System) -> None:
    tasks = [await system.submit(tokens=5) for _ in range(15)]

    states = {(await system.final(task.id)).state for task in tasks}

    assert states == {TaskState.SUCCEEDED}


async def test_a_request_the_handler_refuses_fails_with_its_field(system: System) -> None:
    task = await system.submit(prompt="refuse")

    done = await system.final(task.id)

    assert done.state is TaskState.FAILED
    assert done.error is not None
    assert (done.error.status, done.error.field) == (422, "prompt")


async def test_an_answer_that_does_not_stream_is_the_result(system: System) -> None:
    task, _ = await system.control.book.submit(
        Submission("ann", "counting", {"input": ["a", "b"]}, 1)
    )

    done = await system.final(task.id)

    assert done.state is TaskState.SUCCEEDED
    assert done.result == {"embeddings": [[1.0, 2.0], [1.0, 2.0]], "num_live": 1}


async def test_a_task_whose_worker_died_goes_on_after_its_tokens(system: System) -> None:
    task = await system.submit(tokens=60)
    await system.until_tokens(task.id, 5)

    system.node.torchserve.kill_worker(REPLICA)

    assert (await system.final(task.id)).state is TaskState.SUCCEEDED
    assert await system.tokens(task.id) == list(range(60))
    assert await system.outcomes(task.id) == ["lost", "succeeded"]


async def test_cancelling_closes_the_request_within_a_second(system: System) -> None:
    task = await system.submit(tokens=100_000)
    await system.until_tokens(task.id, 3)

    await system.control.book.cancel(task.id)

    await until(lambda: system.node.torchserve.num_running(REPLICA) == 0, 1)
    assert (await system.final(task.id)).state is TaskState.CANCELLED


async def test_no_token_is_lost_or_repeated_when_the_control_plane_restarts(
    system: System,
) -> None:
    task = await system.submit(tokens=300)
    await system.until_tokens(task.id, 5)

    await system.control.close()
    # The generation goes on meanwhile.
    lease = system.node.runner._core._leases[task.id]
    await until(lambda: len(lease.unacknowledged) >= 10)
    await system.control.open()

    assert (await system.final(task.id)).state is TaskState.SUCCEEDED
    assert await system.tokens(task.id) == list(range(300))
    assert await system.outcomes(task.id) == ["succeeded"]


async def test_a_finish_while_the_control_plane_is_away_arrives_later(system: System) -> None:
    task = await system.submit(tokens=60)
    await system.until_tokens(task.id, 2)

    await system.control.close()
    await until(lambda: system.node.torchserve.num_running(REPLICA) == 0)
    await system.control.open()

    assert (await system.final(task.id)).state is TaskState.SUCCEEDED
    assert await system.tokens(task.id) == list(range(60))
    assert await system.outcomes(task.id) == ["succeeded"]


async def test_a_restarted_runner_has_its_leases_requeued_at_once(system: System) -> None:
    task = await system.submit(tokens=100)
    await system.until_tokens(task.id, 5)

    await system.node.close()
    system.node.open()

    assert (await system.final(task.id)).state is TaskState.SUCCEEDED
    assert await system.tokens(task.id) == list(range(100))
    assert await system.outcomes(task.id) == ["lost", "succeeded"]


async def test_a_restarted_runner_adopts_the_replica_that_runs(system: System) -> None:
    await until(lambda: REPLICA in system.node.torchserve.models)
    model = system.node.torchserve.models[REPLICA]
    await system.node.close()

    system.node.open()
    task = await system.submit(tokens=3)
    await system.final(task.id)

    assert system.node.torchserve.models[REPLICA] is model


async def test_a_task_of_a_runner_that_is_gone_is_requeued_when_its_lease_ends(
    system: System,
) -> None:
    system.control.book._rules = type(system.control.book._rules)(
        system.control.book._rules.queue, 0.5, 5
    )
    task = await system.submit(tokens=100_000)
    await system.until_tokens(task.id, 3)

    await system.node.close()

    async with asyncio.timeout(5):
        while (await system.control.book.task(task.id)).state is not TaskState.QUEUED:
            await asyncio.sleep(0.05)
    assert await system.outcomes(task.id) == ["lost"]


async def test_a_runner_is_told_to_stop_what_was_given_away_behind_its_back(
    system: System,
) -> None:
    task = await system.submit(tokens=100_000)
    await system.until_tokens(task.id, 3)
    fence = (await system.control.book.task(task.id)).fence

    await system.control.book.release(task.id, fence, "for the test")

    await until(lambda: system.node.torchserve.num_abandoned == 1)
    await system.control.book.cancel(task.id)
    assert (await system.outcomes(task.id))[0] == "lost"


async def test_scaling_to_nothing_waits_for_the_work_in_flight(system: System) -> None:
    task = await system.submit(tokens=60)
    await system.until_tokens(task.id, 3)

    await system.control.book.set_desired_replicas("counting", 0)

    assert (await system.final(task.id)).state is TaskState.SUCCEEDED
    assert await system.outcomes(task.id) == ["succeeded"]
    await until(lambda: not system.node.torchserve.models)


async def test_a_restarted_torchserve_gets_its_replica_again(system: System) -> None:
    task = await system.submit(tokens=100)
    await system.until_tokens(task.id, 5)

    await system.node.torchserve.stop()
    await system.node.torchserve.start()

    assert (await system.final(task.id)).state is TaskState.SUCCEEDED
    assert await system.tokens(task.id) == list(range(100))


async def test_the_node_and_its_replica_are_seen(system: System) -> None:
    with contextlib.suppress(TimeoutError):
        await until(lambda: any(n.replicas for n in system.control.dispatcher.nodes()), 5)
    task = await system.submit(tokens=3)
    await system.final(task.id)

    [node] = system.control.dispatcher.nodes()

    assert (node.node, node.connected) == ("node-1", True)
    assert [(r.name, r.state, r.capacity) for r in node.replicas] == [(REPLICA, "ready", 4)]
