"""Plait's whole path as a contender: HTTP in, a real control plane, a runner over gRPC.

The control plane is ``plait control`` with its settings as they come, and stays. Submitters talk to
its gateway over HTTP. The worker is the runner that every node has; its TorchServe is the double
that Plait's own tests use, without Java and without a model.
"""

from __future__ import annotations

import os
import sys
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import aiohttp

from benchmarks.queue import servers
from benchmarks.queue.contenders import base
from benchmarks.queue.contenders.base import Job, Setup
from handlers import model_config
from scheduler.clock import SystemClock
from scheduler.runner.service import Identity, Runner, load_runner_id
from scheduler.telemetry import logs
from scheduler.testing.torchserve import FakeTorchServe
from scheduler.torchserve.endpoint import Endpoint
from scheduler.torchserve.inference import Inference
from scheduler.torchserve.management import Management

ROOT: Final = Path(__file__).resolve().parents[2]
MODEL: Final = "demo"
NUM_TENANTS: Final = 10
NUM_CONNECTIONS: Final = 16
#: Seconds between two tokens of a task that takes time.
STEP_S: Final = 0.1
_BARE = {name: value for name, value in os.environ.items() if not name.startswith("PLAIT_")}


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """A control plane; yields its ports for HTTP and gRPC."""
    http_port, grpc_port = servers.free_ports(2)
    settings = {
        "PLAIT_HTTP_PORT": str(http_port),
        "PLAIT_GRPC_PORT": str(grpc_port),
        "PLAIT_STATE": str(folder / "control"),
        "PLAIT_MODELS": MODEL,
    }
    command = [sys.executable, "-m", "scheduler.cli", "control"]
    log = folder / "control.log"
    with servers.running(command, log, env=_BARE | settings, cwd=ROOT):
        servers.wait_listening(http_port)
        servers.wait_listening(grpc_port)
        yield f"{http_port} {grpc_port}"


class ControlContender(base.Awaiting):
    """A submitter of prompts that are numbers, and a node that answers them."""

    num_callers = NUM_CONNECTIONS

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        http_port, self._grpc_port = setup.address.split()
        self._url = f"http://127.0.0.1:{http_port}/v1/tasks"
        self._session: aiohttp.ClientSession | None = None

    @abstractmethod
    def inference(self, endpoint: Endpoint) -> Inference:
        """What the runner sends tasks to."""

    async def submit_one(self, job: Job) -> None:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=NUM_CONNECTIONS)
            self._session = aiohttp.ClientSession(connector=connector)
        num_tokens = max(1, round(job.seconds / STEP_S))
        document = {"prompt": str(job.index), "max_new_tokens": num_tokens}
        async with self._session.post(
            self._url,
            json={"model": MODEL, "input": document},
            headers={"X-Plait-Tenant": f"tenant-{job.index % NUM_TENANTS}"},
        ) as response:
            response.raise_for_status()
            await response.read()

    def work(self) -> None:
        logs.configure("info")
        self.wait_for(self._work())

    async def _work(self) -> None:
        folder, clock = Path(self.setup.folder) / "node", SystemClock()
        store, state = folder / "archives", folder / "state"
        config = model_config.load(ROOT / "model_configs" / f"{MODEL}.yaml")
        configs = {MODEL: replace(config, max_batch=self.setup.slots)}
        torchserve = FakeTorchServe(state, store, step_s=STEP_S)
        await torchserve.start()
        endpoint = Endpoint(state)
        # The id is in a file, so that a runner started again is the same one.
        identity = Identity(load_runner_id(state), "bench")
        runner = Runner(
            identity,
            f"127.0.0.1:{self._grpc_port}",
            self.inference(endpoint),
            Management(endpoint, clock),
            configs,
            store,
            clock,
        )
        await runner.run()

    def close(self) -> None:
        if self._session is not None:
            self.wait_for(self._session.close())
