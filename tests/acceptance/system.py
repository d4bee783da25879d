"""A whole Plait on this machine, started with the command a user would type.

It is watched and hurt from outside only: through its ports, its command line and its processes.
Nothing in here imports the scheduler.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import requests

from tests.waiting import wait_for

ROOT = Path(__file__).resolve().parent.parent.parent
START_TIMEOUT_S = 240.0


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


class Plait:
    """A command that serves, with ports and a log of its own; what a client does with it."""

    #: The command, and what it answers 200 to once clients may come.
    command, ready_path = "up", "/ready"

    def __init__(self, folder: Path, model_configs: Path, models: str, **settings: str) -> None:
        self.state = folder / "state"
        self.http_port, self.grpc_port = free_ports(2)
        self.address = f"http://127.0.0.1:{self.http_port}"
        self.grpc_address = f"127.0.0.1:{self.grpc_port}"
        self.log = folder / f"{self.command}.log"
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("PLAIT_")},
            "PLAIT_HTTP_PORT": str(self.http_port),
            "PLAIT_GRPC_PORT": str(self.grpc_port),
            "PLAIT_STATE": str(self.state),
            "PLAIT_MODEL_STORE": str(folder / "archives"),
            "PLAIT_MODEL_CONFIGS": str(model_configs),
            "PLAIT_MODELS": models,
            **{f"PLAIT_{name.upper()}": value for name, value in settings.items()},
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.session = requests.Session()

    def start(self) -> None:
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "scheduler.cli", self.command],
                env=self.environment,
                cwd=ROOT,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        wait_for(f"plait {self.command} to be ready", self._is_ready, START_TIMEOUT_S)

    def _is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"plait {self.command} ended:\n{self.log.read_text()}"
        try:
            return requests.get(self.address + self.ready_path, timeout=2).status_code == 200
        except requests.ConnectionError:
            return False

    def stop(self, how: signal.Signals = signal.SIGINT) -> int:
        """Stop as Ctrl-C does; returns the exit code."""
        assert self.process is not None
        self.session.close()
        self.process.send_signal(how)
        code = self.process.wait(timeout=60)
        self.process = None
        return code

    def post(
        self, path: str, document: Any, tenant: str = "default", **more: Any
    ) -> requests.Response:
        return self.session.post(
            self.address + path,
            json=document,
            headers={"X-Plait-Tenant": tenant},
            timeout=120,
            **more,
        )

    def get(self, path: str, tenant: str = "default") -> Any:
        answer = self.session.get(
            self.address + path, headers={"X-Plait-Tenant": tenant}, timeout=30
        )
        answer.raise_for_status()
        return answer.json()

    def submit(self, model: str, tenant: str = "default", **document: Any) -> str:
        answer = self.post("/v1/tasks", {"model": model, "input": document}, tenant)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["task_id"])

    def wait(
        self, task_id: str, tenant: str = "default", timeout_s: float = 90.0
    ) -> dict[str, Any]:
        """The task once it is final."""

        def look() -> dict[str, Any] | None:
            task = self.get(f"/v1/tasks/{task_id}", tenant)
            return task if task["state"] not in ("queued", "leased") else None

        return wait_for(f"task {task_id} to end", look, timeout_s)

    def plait(self, *arguments: str) -> subprocess.Popen[str]:
        """The command line, its output as text."""
        return subprocess.Popen(
            [sys.executable, "-m", "scheduler.cli", *arguments],
            env={k: v for k, v in self.environment.items() if k not in ("PLAIT_HOST",)},
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
        )

    def run(self, *arguments: str) -> str:
        """What a command printed to standard output; it must succeed."""
        process = self.plait(*arguments)
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        return output


class ControlPlane(Plait):
    """One ``plait control``: no runner of its own, so it is never ready to run anything."""

    command, ready_path = "control", "/ping"

    def kill(self) -> None:
        """Kill it with SIGKILL; it can still be stopped."""
        assert self.process is not None
        self.process.kill()


class System(Plait):
    """One ``plait up``: everything on this machine, with its own state and model store."""

    def processes(self) -> list[psutil.Process]:
        """Everything that runs for this Plait, the supervisor excepted: by its state folder."""
        return list(self._processes())

    def _processes(self) -> Iterator[psutil.Process]:
        own = {os.getpid(), self.process.pid if self.process else 0}
        for process in psutil.process_iter():
            if process.pid in own:
                continue
            with contextlib.suppress(psutil.Error):
                environ = process.environ()
                if str(self.state) in (environ.get("PLAIT_STATE_DIR"), environ.get("PLAIT_STATE")):
                    yield process

    def rank(self, model: str, rank: int) -> psutil.Process:
        """One of the processes torchrun started for the model; rank 0 is the driver."""
        for process in self._processes():
            with contextlib.suppress(psutil.Error):
                is_rank = process.environ().get("RANK") == str(rank)
                if is_rank and f"{model}__r" in process.cwd() + " ".join(
                    process.parent().cmdline() if process.parent() else []
                ):
                    return process
        raise AssertionError(f"no process runs rank {rank} of {model}")

    def stage(self, model: str, index: int) -> psutil.Process:
        """The process that runs one stage of the model, as the engine's status names it."""
        for node in self.get("/v1/nodes")["nodes"]:
            for replica in node["replicas"]:
                if replica["model"] == model and replica.get("engine"):
                    return psutil.Process(replica["engine"]["stages"][index]["pid"])
        raise AssertionError(f"no replica of {model} shows its stages")

    def part(self, name: str) -> psutil.Process:
        """The control plane ("control") or the runner ("runner")."""
        for process in self._processes():
            with contextlib.suppress(psutil.Error):
                if process.cmdline()[-3:][:1] and f"scheduler.cli {name}" in " ".join(
                    process.cmdline()
                ):
                    return process
        raise AssertionError(f"no process is the {name}")


def events(system: Plait, task_id: str, cursor: int = 0) -> Iterator[dict[str, Any]]:
    """A task's server-sent events until the stream ends, as documents with kind and cursor."""
    url = f"{system.address}/v1/tasks/{task_id}/events?cursor={cursor}"
    with requests.get(url, stream=True, timeout=60) as answer:
        answer.raise_for_status()
        frame: dict[str, str] = {}
        # By the byte: a line must not wait for the next one to fill a buffer.
        for line in answer.iter_lines(chunk_size=1, decode_unicode=True):
            if line:
                name, _, value = line.partition(": ")
                frame[name] = value
            elif "data" in frame:
                document = json.loads(frame["data"])
                yield {**document, "kind": frame["event"], "cursor": int(frame["id"])}
                frame = {}
            else:
                frame = {}


def watch_to_the_end(
    task_id: str, *places: Plait, on_first: Callable[[], None] | None = None
) -> list[int]:
    """A client's tokens; when its stream breaks it comes back with its cursor, to the next place.

    ``on_first``: called once, when the first tokens have come.
    """
    tokens: list[int] = []
    cursor = 0
    turns = itertools.cycle(places)

    def attach() -> bool:
        nonlocal cursor, on_first
        with contextlib.suppress(requests.RequestException):
            for event in events(next(turns), task_id, cursor):
                tokens.extend(event.get("token_ids", ()))
                cursor = event["cursor"]
                if event["kind"] == "end":
                    return True
                if tokens and on_first is not None:
                    on_first()
                    on_first = None
        return False

    wait_for(f"task {task_id} to end", attach, 120)
    return tokens
