"""A control plane's dispatcher on a real port, and a runner's end of the stream to speak from."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from scheduler.autoscaler.placement import Plan
from scheduler.bulk_book import BulkBook
from scheduler.clock import SteadyClock, SystemClock
from scheduler.dispatcher.service import SERVER_OPTIONS, Dispatcher
from scheduler.node_book import NodeBook
from scheduler.reconciliation.base import Parts
from scheduler.reconciliation.checks import all_checks
from scheduler.reconciliation.service import Reconciliation
from scheduler.rpc import plait_pb2 as pb
from scheduler.rpc import plait_pb2_grpc as rpc
from scheduler.stores import sqlite
from scheduler.stores.base import Store
from scheduler.task import Submission, Task
from scheduler.task_book import TaskBook


class JumpingClock(SystemClock):
    """The machine's clock, which a test can have jump as if the machine had slept."""

    def __init__(self) -> None:
        self.slept_s = 0.0
        #: By how much all has gone faster, nothing having slept.
        self.ahead_s = 0.0

    def now(self) -> float:
        return super().now() + self.slept_s

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead_s


def hello(*held: tuple[str, int], capacity: int = 2, **changes: Any) -> pb.RunnerMessage:
    values: dict[str, Any] = {
        "runner_id": "one",
        "session_id": "first",
        "node": "node",
        "protocol": 1,
        "held": [pb.HeldLease(task_id=task_id, fence=fence) for task_id, fence in held],
        "replicas": [replica(capacity=capacity)],
    }
    return pb.RunnerMessage(hello=pb.Hello(**{**values, **changes}))


def replica(**changes: Any) -> pb.Replica:
    values: dict[str, Any] = {
        "name": "demo__r0",
        "model": "demo",
        "state": pb.Replica.READY,
        "capacity": 2,
    }
    return pb.Replica(**{**values, **changes})


def progress(grant: pb.Grant, seq: int) -> pb.RunnerMessage:
    return pb.RunnerMessage(
        progress=pb.Progress(
            task_id=grant.task_id, fence=grant.fence, seq=seq, token_ids=[seq], text=f"{seq} "
        )
    )


def finish(grant: pb.Grant) -> pb.RunnerMessage:
    return pb.RunnerMessage(
        finish=pb.Finish(task_id=grant.task_id, fence=grant.fence, result_json="{}")
    )


def heartbeat(*held: tuple[str, int], **changes: Any) -> pb.RunnerMessage:
    leases = [pb.HeldLease(task_id=task_id, fence=fence) for task_id, fence in held]
    return pb.RunnerMessage(heartbeat=pb.Heartbeat(held=leases, replicas=[replica(**changes)]))


class Stream:
    """A runner's end of the stream."""

    def __init__(self, call: Any) -> None:
        self._call = call

    async def say(self, *messages: pb.RunnerMessage) -> None:
        for message in messages:
            await self._call.write(message)

    async def hear(self, kind: str) -> Any:
        """The next message of a kind; others before it are passed over."""
        async with asyncio.timeout(5):
            while True:
                message = await self._call.read()
                assert message is not grpc.aio.EOF, f"the stream ended before a {kind}"
                if message.WhichOneof("body") == kind:
                    return getattr(message, kind)

    async def hears_nothing(self, kind: str, until: str) -> None:
        """No message of ``kind`` comes before one of ``until``."""
        async with asyncio.timeout(5):
            while (message := await self._call.read()).WhichOneof("body") != until:
                assert message.WhichOneof("body") != kind, message

    async def end(self) -> None:
        """Wait until the control plane has ended the stream."""
        async with asyncio.timeout(5):
            while await self._call.read() is not grpc.aio.EOF:
                pass


@dataclass
class Control:
    book: TaskBook
    dispatcher: Dispatcher
    stub: Any
    clock: JumpingClock
    reconciliation: Reconciliation

    def connect(self) -> Stream:
        return Stream(self.stub.Connect())

    async def welcomed(self, greeting: pb.RunnerMessage | None = None) -> Stream:
        stream = self.connect()
        await stream.say(greeting or hello())
        await stream.hear("welcome")
        return stream

    async def submit(self, tenant: str = "ann", estimated_cost: int = 1) -> Task:
        document = {"prompt": "def", "max_new_tokens": 10}
        task, _ = await self.book.submit(Submission(tenant, "demo", document, estimated_cost))
        return task


@asynccontextmanager
async def control_plane(
    port: int, store: Store | None = None, *, poll_s: float = 0.05, **options: Any
) -> AsyncIterator[Control]:
    store = store or sqlite.Store(sqlite.MEMORY)
    machine = JumpingClock()
    clock = SteadyClock(machine)
    book = TaskBook(store, clock, lease_ttl_s=10)
    nodes = NodeBook(book.ledger, "plane")
    dispatcher = Dispatcher(book, nodes, clock, poll_s=poll_s, **options)
    bulks = BulkBook(book.ledger, book.rules, book.new_id)
    parts = Parts(book, bulks, nodes, clock, dispatcher, lambda: Plan({}))
    reconciliation = Reconciliation(all_checks(parts), clock, tick_s=poll_s)
    await reconciliation.look()
    running = [asyncio.create_task(each.run()) for each in (dispatcher, reconciliation)]
    server = grpc.aio.server(options=SERVER_OPTIONS)
    rpc.add_RunnerServiceServicer_to_server(dispatcher, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Control(book, dispatcher, rpc.RunnerServiceStub(channel), machine, reconciliation)
    dispatcher.close()
    await server.stop(0)
    for each in running:
        each.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    await store.close()
