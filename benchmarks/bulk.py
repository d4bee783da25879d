"""A bulk of 100,000 inputs through the whole gateway: how fast it is accepted and drained, how much
memory that takes, and what those notice who come beside it.

    python -m benchmarks.bulk [--inputs 100000] [--slots 16] [--task-ms 2]

One process is the control plane: gateway over HTTP, SQLite on disk with every commit flushed, and
in it a played runner with some slots that ends each task after a while. Another hands the bulk in
and follows it, and sends an interactive task every tenth of a second and waits for it: before there
is a bulk, while it comes in, and while it is worked off.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

MODEL = "demo"
PROBE_EVERY_S = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--task-ms", type=float, default=2.0)
    given = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (folder, given.slots, given.task_ms / 1000, theirs)
        gateway = context.Process(target=serve, args=arguments)
        gateway.start()
        try:
            report = measure(ours.recv(), gateway.pid or 0, given.inputs, given.slots)
        finally:
            gateway.terminate()
            gateway.join()
    print(json.dumps(report, indent=2))


# ----------------------------------------------------------------------------------- measuring


def measure(address: str, pid: int, num_inputs: int, num_slots: int) -> dict[str, Any]:
    from scheduler.client import Client

    client, process = Client(address), psutil.Process(pid)
    probe = Probe(address)
    report: dict[str, Any] = {"inputs": num_inputs, "slots": num_slots}
    with probe.phase("quiet"):
        time.sleep(5)
    report["memory_before_mb"] = _mb(process)
    with probe.phase("accepting"), _sampled(process) as memory:
        began = time.monotonic()
        bulk = client.submit_bulk(MODEL, _inputs(num_inputs))
        accepting_s = time.monotonic() - began
    report["accepted_per_s"] = round(num_inputs / accepting_s)
    report["memory_accepting_mb"] = _spread(memory)
    ended = client.bulk(bulk["bulk_id"])["num_ended"]
    with probe.phase("draining"), _sampled(process) as memory:
        began = time.monotonic()
        num_read = sum(1 for _ in client.bulk_results(bulk["bulk_id"]))
        draining_s = time.monotonic() - began
    assert num_read == num_inputs
    report["drained_per_s"] = round((num_inputs - ended) / draining_s)
    report["memory_draining_mb"] = _spread(memory)
    report["interactive_ms"] = probe.latencies()
    return report


def _inputs(count: int) -> Iterator[bytes]:
    for number in range(count):
        yield b'{"prompt": "input %d: def add(a, b):", "max_new_tokens": 16}' % number


def _spread(samples: list[float]) -> list[float]:
    """Five of them from the first to the last, evenly spaced."""
    return [samples[round(place * (len(samples) - 1) / 4)] for place in range(5)]


def _mb(process: psutil.Process) -> float:
    return round(float(process.memory_info().rss) / 2**20, 1)


@contextlib.contextmanager
def _sampled(process: psutil.Process) -> Iterator[list[float]]:
    """Memory of the process, once a second."""
    samples, is_over = [_mb(process)], threading.Event()

    def sample() -> None:
        while not is_over.wait(1.0):
            samples.append(_mb(process))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        is_over.set()
        thread.join()


class Probe:
    """Somebody who sends interactive tasks and waits for each."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._seen: dict[str, list[float]] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        is_over = threading.Event()
        seen = self._seen.setdefault(name, [])
        thread = threading.Thread(target=self._send, args=(seen, is_over))
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    def _send(self, seen: list[float], is_over: threading.Event) -> None:
        import requests

        body = {"prompt": "def", "max_new_tokens": 16, "class": "interactive"}
        session = requests.Session()
        session.headers["X-Plait-Tenant"] = "chat"
        while not is_over.wait(PROBE_EVERY_S):
            began = time.monotonic()
            session.post(f"{self._address}/predictions/{MODEL}", json=body).raise_for_status()
            seen.append(time.monotonic() - began)

    def latencies(self) -> dict[str, dict[str, float]]:
        return {
            name: {
                "tasks": len(seen),
                "p50": round(1000 * statistics.median(seen), 1),
                "p99": round(1000 * sorted(seen)[int(0.99 * (len(seen) - 1))], 1),
                "max": round(1000 * max(seen), 1),
            }
            for name, seen in self._seen.items()
        }


# ------------------------------------------------------------------------------ the control plane


def serve(folder: str, num_slots: int, task_s: float, ready: Connection) -> None:
    asyncio.run(_serve(Path(folder), num_slots, task_s, ready))


async def _serve(folder: Path, num_slots: int, task_s: float, ready: Connection) -> None:
    from handlers import model_config
    from scheduler.bulk_book import BulkBook
    from scheduler.clock import SystemClock
    from scheduler.explainer import Explainer
    from scheduler.gateway.front import Front
    from scheduler.gateway.http import open_http
    from scheduler.gateway.tokens import open_counter
    from scheduler.operations import Operations
    from scheduler.speedometer import Speedometer
    from scheduler.stores.sqlite import Store
    from scheduler.task_book import TaskBook

    clock = SystemClock()
    config = model_config.load(Path("model_configs") / f"{MODEL}.yaml")
    book = TaskBook(Store(folder / "plait.sqlite"), clock, lease_ttl_s=60.0)
    runner = Runner(book, num_slots, task_s)
    speedometer = Speedometer(book.ledger, runner)
    explainer = Explainer(book.ledger, book.rules, runner, {MODEL: config}, speedometer)
    front = Front(
        book,
        Operations(book.ledger, book.rules.queue),
        {MODEL: config},
        {MODEL: open_counter(config)},
        runner,
        clock,
        BulkBook(book.ledger, book.rules, book.new_id),
        explainer,
    )
    http = await open_http(front, "127.0.0.1", 0, 8 * 2**20)
    ready.send(f"http://127.0.0.1:{http.addresses[0][1]}")
    await runner.run()


class Runner:
    """Slots, each of which ends the task it is given after a while."""

    def __init__(self, book: Any, num_slots: int, task_s: float) -> None:
        self._book, self._num_slots, self._task_s = book, num_slots, task_s
        self._free = num_slots
        self._woken = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        book.ledger.on_queued(lambda _model: self._woken.set())

    def nodes(self) -> Any:
        from scheduler.cluster_view import NodeView, ReplicaView

        busy = self._num_slots - self._free
        replica = ReplicaView("demo__r0", MODEL, "ready", self._num_slots, busy)
        return (NodeView("here", "r", True, 0, (replica,)),)

    async def run(self) -> None:
        while True:
            await self._woken.wait()
            self._woken.clear()
            while self._free:
                granted = await self._book.claim(
                    MODEL, runner="r", replica="demo__r0", limit=self._free
                )
                for grant in granted:
                    self._free -= 1
                    working = asyncio.create_task(self._work(grant.task))
                    self._running.add(working)
                    working.add_done_callback(self._running.discard)
                if not granted:
                    break

    async def _work(self, task: Any) -> None:
        from scheduler.task import JournalChunk

        await asyncio.sleep(self._task_s)
        chunk = JournalChunk(0, tuple(range(16)), "\n    return a + b\n")
        await self._book.append(task.id, task.fence, [chunk])
        result = {"finish_reason": "length", "num_prompt_tokens": 8, "num_output_tokens": 16}
        await self._book.succeed(task.id, task.fence, result)
        self._free += 1
        self._woken.set()


if __name__ == "__main__":
    main()
