"""A gateway on real sockets over a real task book, and a runner that is played.

The played runner claims, appends and finishes as the dispatcher does for a real one. What it does
with a task depends on the prompt: it writes ``max_new_tokens`` words and succeeds, unless the
prompt begins with "fail" (refused at once), "break" (fails after two words) or "hold" (stops
after three words until it is told to go on).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from aiohttp import web

from handlers.model_config import ModelConfig, Source
from handlers.scale_section import Scale
from handlers.wire import TokenLogprob
from scheduler.autoscaler.placement import Plan
from scheduler.bulk_book import BulkBook
from scheduler.clock import SteadyClock, SystemClock
from scheduler.cluster_view import HoldingView, NodeView, ReplicaView
from scheduler.errors import StaleLease, StoreUnavailable
from scheduler.explainer import Explainer
from scheduler.gateway.front import Front
from scheduler.gateway.grpc_tasks import attach, server_options
from scheduler.gateway.http import open_http
from scheduler.gateway.pressure import Pressure
from scheduler.gateway.tokens import open_counters
from scheduler.node_book import NodeBook
from scheduler.operations import Operations
from scheduler.reconciliation.base import Parts
from scheduler.reconciliation.checks import all_checks
from scheduler.reconciliation.service import Reconciliation
from scheduler.speedometer import Speedometer
from scheduler.stores.sqlite import Store
from scheduler.task import Grant, JournalChunk, Task, TaskError
from scheduler.task_book import TaskBook
from tests.waiting import until

DEMO = Path(__file__).resolve().parent.parent.parent / "models" / "demo"
MAX_BODY_BYTES = 64 * 1024
NUM_WORDS_HELD = 3


def make_config(name: str, task: str = "generate", **changes: Any) -> ModelConfig:
    """A model's config with the defaults of the demo model."""
    fields: dict[str, Any] = {
        "source": Source("folder", str(DEMO)),
        "engine": "pipelined" if task == "generate" else "encoder",
        "dtype": "float32",
        "num_stages": 2,
        "partition": None,
        "num_lanes": None,
        "max_batch": 16,
        "max_context": 1024,
        "prefill_chunk": 64,
        "num_replicas": 1,
        "device_type": "cpu",
        "device_ids": None,
        "response_timeout_s": 60,
        "startup_timeout_s": 60,
    }
    return ModelConfig(name=name, task=task, **{**fields, **changes})


MODELS = {
    "demo": make_config("demo"),
    "encoder": make_config("encoder", "embed", max_context=256),
    "labeller": make_config("labeller", "classify", max_context=256, num_replicas=0),
    "asleep": make_config("asleep", num_replicas=0),
    "elastic": make_config("elastic", num_replicas=0, scale=Scale(max=2, min=0)),
}


class PlayedRunner:
    """Works off whatever becomes queued, one asyncio task each."""

    def __init__(self) -> None:
        self.book: TaskBook | None = None
        #: Set to let tasks on hold go on.
        self.go_on = asyncio.Event()
        #: Ids of tasks whose lease was ended by somebody else, in order.
        self.ended: list[str] = []
        self._working: dict[str, asyncio.Task[None]] = {}
        self._claiming: set[asyncio.Task[None]] = set()

    def attach(self, book: TaskBook) -> None:
        """Work for this book from now on, also at what was begun for the one before."""
        self.book = book
        book.ledger.on_queued(self._claim_soon)
        book.ledger.on_lease_ended(self._stop)

    async def close(self) -> None:
        working = [*self._working.values(), *self._claiming]
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)

    def _claim_soon(self, model: str) -> None:
        claiming = asyncio.create_task(self._claim(model))
        self._claiming.add(claiming)
        claiming.add_done_callback(self._claiming.discard)

    async def _claim(self, model: str) -> None:
        assert self.book is not None
        claim = partial(self.book.claim, model, runner="r1", replica=f"{model}__r0", limit=100)
        # A gateway that closes meanwhile leaves the rest to the next.
        with contextlib.suppress(StoreUnavailable):
            while grants := await claim():
                for grant in grants:
                    self._working[grant.task.id] = asyncio.create_task(self._work(grant))

    def _stop(self, task_id: str, fence: int, runner: str) -> None:
        self.ended.append(task_id)
        self._working[task_id].cancel()

    async def _work(self, grant: Grant) -> None:
        with contextlib.suppress(StaleLease):
            await self._play(grant)

    async def _play(self, grant: Grant) -> None:
        task, document = grant.task, grant.task.document
        if "input" in document:
            texts = document["input"]
            result: dict[str, Any] = {"embeddings": [[float(len(text)), 0.5] for text in texts]}
            if task.model == "labeller":
                scores = [{"good": 0.75, "bad": 0.25} for _ in texts]
                result = {"labels": ["good" for _ in texts], "scores": scores}
            result["num_input_tokens"] = len(texts)
            await self._book.succeed(task.id, task.fence, result)
            return
        prompt = document.get("prompt", "")
        if prompt.startswith("fail"):
            error = TaskError(422, "is not to the model's liking", "prompt")
            await self._book.fail(task.id, task.fence, error)
            return
        if document.get("n", 1) > 1 or "logprobs" in document:
            await self._play_answers(grant)
            return
        num_tokens = document["max_new_tokens"]
        for seq in range(num_tokens):
            if prompt.startswith("hold") and seq == NUM_WORDS_HELD:
                await self.go_on.wait()
            if prompt.startswith("break") and seq == 2:
                await self._book.fail(task.id, task.fence, TaskError(500, "the replica broke"))
                return
            chunk = JournalChunk(seq, (seq,), f"w{seq} ")
            await self._book.append(task.id, task.fence, [chunk])
        result = {
            "finish_reason": "length",
            "num_prompt_tokens": 2,
            "num_output_tokens": num_tokens,
        }
        await self._book.succeed(task.id, task.fence, result)

    async def _play_answers(self, grant: Grant) -> None:
        """Word by word of each answer in turn, with a log probability when asked for."""
        task, document = grant.task, grant.task.document
        num_answers, num_words = document.get("n", 1), document["max_new_tokens"]
        for seq in range(num_answers * num_words):
            word, index = divmod(seq, num_answers)
            logprobs = (TokenLogprob(-0.5, ((word, -0.5),)),) if "logprobs" in document else ()
            chunk = JournalChunk(seq, (word,), f"{index}w{word} ", index, logprobs)
            await self._book.append(task.id, task.fence, [chunk])
        result: dict[str, Any] = {
            "finish_reason": "length",
            "num_prompt_tokens": 2,
            "num_output_tokens": num_answers * num_words,
        }
        if num_answers > 1:
            result["finish_reasons"] = ["length"] * num_answers
        await self._book.succeed(task.id, task.fence, result)

    @property
    def _book(self) -> TaskBook:
        assert self.book is not None
        return self.book


class PlayedCluster:
    """One node, with one replica of each model that has any."""

    def __init__(self, state: str = "ready") -> None:
        self.state = state

    def nodes(self) -> Sequence[NodeView]:
        replicas = tuple(
            ReplicaView(f"{name}__r0", name, self.state, 16, 0, (0, 1))
            for name in ("demo", "encoder")
        )
        holdings = (HoldingView("encoder", "fetching", 30, 120, 5.0),)
        return (NodeView("here", "r1", True, 2, replicas, holdings=holdings),)

    def leases(self, runner_id: str) -> set[tuple[str, int]]:
        return set()

    def dismiss_silent(self) -> dict[str, float]:
        return {}

    def forget_lost(self) -> list[str]:
        return []

    def want_again(self, runner_id: str) -> None:
        """It runs what it runs."""


class GatewaySystem:
    """A control plane without its dispatcher; it can be closed and opened again."""

    def __init__(self, path: Path | str = ":memory:", has_runner: bool = True) -> None:
        self._path = path
        self.runner = PlayedRunner() if has_runner else None
        #: What the next opening is given.
        self.max_attempts = 5
        self.max_queued = 1000
        self.require_keys = False
        #: Bytes that the store's disk has left; as many as that are kept.
        self.free_bytes = 1000
        self.cluster = PlayedCluster()
        self.http_port = 0
        self.grpc_port = 0

    async def open(self) -> None:
        """Listen, at the same ports as the time before."""
        self.store = Store(self._path)
        clock = SteadyClock(SystemClock())
        self.book = TaskBook(self.store, clock, lease_ttl_s=30.0, max_attempts=self.max_attempts)
        if self.runner is not None:
            self.runner.attach(self.book)
        self.operations = Operations(self.book.ledger, self.book.rules.queue)
        self.pressure = Pressure(
            self.book.depth,
            lambda: self.free_bytes,
            max_queued=self.max_queued,
            min_free_disk_bytes=1000,
        )
        await self.pressure.look()
        speedometer = Speedometer(self.book.ledger, self.cluster)
        bulks = BulkBook(self.book.ledger, self.book.rules, self.book.new_id)
        nodes = NodeBook(self.book.ledger, "plane")
        parts = Parts(self.book, bulks, nodes, clock, self.cluster, lambda: Plan({}))
        #: Not running: what it finds is found when a test asks for it.
        self.reconciliation = Reconciliation(all_checks(parts), clock)
        self.front = Front(
            self.book,
            self.operations,
            MODELS,
            open_counters(MODELS),
            self.cluster,
            clock,
            bulks,
            Explainer(self.book.ledger, self.book.rules, self.cluster, MODELS, speedometer),
            self.reconciliation,
            pressure=self.pressure,
            require_keys=self.require_keys,
        )
        self.http: web.AppRunner = await open_http(
            self.front, "127.0.0.1", self.http_port, MAX_BODY_BYTES
        )
        self.http_port = self.http.addresses[0][1]
        self.grpc = grpc.aio.server(options=server_options(MAX_BODY_BYTES))
        attach(self.grpc, self.front)
        self.grpc_port = self.grpc.add_insecure_port(f"127.0.0.1:{self.grpc_port}")
        await self.grpc.start()

    async def close(self) -> None:
        """Stop listening and put the store down."""
        self.front.close()
        await self.grpc.stop(0.5)
        await self.http.cleanup()
        await self.store.close()

    async def wait_for_words(self, task_id: str, count: int) -> None:
        """Until the task's journal holds that many chunks."""
        await until(lambda: self.book.task(task_id), lambda task: task.num_chunks >= count)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def grpc_target(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"


async def ended(system: GatewaySystem, task_id: str, within_s: float = 1.0) -> Task:
    """The task once it is final; TimeoutError when it is not in time."""
    return await until(
        lambda: system.book.task(task_id), lambda task: task.state.is_final, timeout_s=within_s
    )


async def first_task(system: GatewaySystem) -> Task:
    return (await until(system.book.tasks))[0]
