"""The processes of a run: a control plane and nodes, started as a user starts them.

    control   ``plait control``                      started again when it ends, as systemd would
    node-1…   ``plait node``: supervisor ▸ model server, runner; its gRPC goes through a cable

Whatever ends by itself or by a fault is started again, unless a fault keeps it down. Everything is
killed by the kernel when this process is (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import random
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil
import yaml

from scheduler.testing.chaos import clockwork, model_server
from scheduler.testing.chaos.cable import Cable

MODEL: Final = "demo"
#: Tasks that a replica works on at once.
NUM_SLOTS: Final = 4
#: Below the ports that the kernel gives to outgoing connections: one that listens again after a
#: minute must find its port free.
_PORTS: Final = range(20_000, 30_000)
_AGAIN_S: Final = 0.3
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG: Final = 1
#: What a process is known by in its command line.
_MARKS: Final = {
    "runner": "scheduler.cli runner",
    "model server": "model_server",
}


class Program:
    """A process that is started again when it ends, until it is put down."""

    def __init__(
        self, name: str, argv: Sequence[str], environment: Mapping[str, str], folder: Path
    ) -> None:
        self.name, self.folder = name, folder
        self._argv, self._environment = list(argv), dict(environment)
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        #: Clear while a fault keeps it down.
        self._may_run = asyncio.Event()
        self._may_run.set()

    def __repr__(self) -> str:
        return f"<Program {self.name} pid={self.pid}>"

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    def start(self) -> None:
        self._keeper = asyncio.create_task(self._keep(), name=f"keep {self.name}")

    def hold_down(self) -> None:
        """Do not start it again until :meth:`let_run`."""
        self._may_run.clear()

    def let_run(self) -> None:
        self._may_run.set()

    def find(self, role: str) -> psutil.Process | None:
        """A process of the program by its role; ``"itself"`` is the one started here."""
        if self.pid is None:
            return None
        with contextlib.suppress(psutil.Error):
            own = psutil.Process(self.pid)
            if role == "itself":
                return own
            for child in own.children():
                if _MARKS[role] in " ".join(child.cmdline()):
                    return child
        return None

    async def stop(self, timeout_s: float = 20.0) -> None:
        """End it with SIGTERM, or SIGKILL if that does not help."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        process = self._process
        if process is None or process.returncode is not None:
            return
        self._resume_all()
        process.terminate()
        try:
            async with asyncio.timeout(timeout_s):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    def _resume_all(self) -> None:
        with contextlib.suppress(psutil.Error):
            own = psutil.Process(self.pid)
            for each in (own, *own.children(recursive=True)):
                each.resume()

    async def _keep(self) -> None:
        while True:
            await self._may_run.wait()
            self._process = await self._spawn()
            await self._process.wait()
            await asyncio.sleep(_AGAIN_S)

    async def _spawn(self) -> asyncio.subprocess.Process:
        parent = os.getpid()

        def die_with_parent() -> None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)

        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "output.log").open("ab") as output:
            return await asyncio.create_subprocess_exec(
                *self._argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )


@dataclass(slots=True)
class Node:
    """A machine, as far as faults are concerned."""

    name: str
    program: Program
    cable: Cable
    state: Path

    @property
    def diary(self) -> Path:
        return self.state / model_server.DIARY

    def is_whole(self) -> bool:
        """Whether every process of it runs."""
        return all(_runs(self.program.find(role)) for role in ("itself", "runner", "model server"))


@dataclass(slots=True)
class Cluster:
    """Everything that runs."""

    control: Program
    nodes: list[Node]
    #: Between clients and the control plane's HTTP.
    front: Cable
    #: Where the control plane's state is; a small file system of its own where that is permitted.
    state: Path
    clocks: dict[str, clockwork.FakeClock]
    #: HTTP without a cable, for looking on.
    address: str
    _undo: list[Callable[[], object]] = field(default_factory=list)

    @property
    def store(self) -> Path:
        return self.state / "plait.sqlite"

    async def start(self) -> None:
        await self.front.open()
        for node in self.nodes:
            await node.cable.open()
        self.control.start()
        for node in self.nodes:
            node.program.start()

    async def stop(self) -> None:
        """End all of it; what was mounted is gone, the store's file stays readable elsewhere."""
        await asyncio.gather(*(node.program.stop() for node in self.nodes))
        await self.control.stop()
        for cable in (self.front, *(node.cable for node in self.nodes)):
            await cable.close()

    def has_control(self) -> bool:
        return _runs(self.control.find("itself"))

    def num_whole_nodes(self) -> int:
        return sum(node.is_whole() for node in self.nodes)


def build(folder: Path, config: Path, *, num_nodes: int, step_s: float, state: Path) -> Cluster:
    """A cluster of light nodes in ``folder``; ``config`` is the YAML of the model to serve."""
    http_port, grpc_port, front_port, *cables = _free_ports(3 + num_nodes)
    configs = _write_config(folder, config)
    clocks = {name: clockwork.FakeClock(folder / f"{name}.clock") for name in ("control", "nodes")}
    common = _environment(configs)
    control = {
        "PLAIT_STATE": str(state),
        "PLAIT_HTTP_PORT": str(http_port),
        "PLAIT_GRPC_PORT": str(grpc_port),
        # Every fault takes an attempt from somebody, and there are hundreds.
        "PLAIT_MAX_ATTEMPTS": "1000",
        "PLAIT_RETRY_MOST_S": "2",
        "PLAIT_MIN_FREE_DISK_BYTES": str(2 * 1024 * 1024),
    }
    argv = [sys.executable, "-m", "scheduler.cli", "control"]
    environment = {**common, **control, **clocks["control"].environment()}
    nodes = []
    for number, port in enumerate(cables, 1):
        own = folder / f"node-{number}"
        variables = {
            "PLAIT_STATE": str(own),
            "PLAIT_NODE": f"node-{number}",
            "PLAIT_MODEL_STORE": str(own / "archives"),
            "PLAIT_CONTROL_ADDRESS": f"127.0.0.1:{port}",
            model_server.STEP_VARIABLE: str(step_s),
            **clocks["nodes"].environment(),
        }
        program = Program(
            f"node-{number}",
            [sys.executable, "-m", "scheduler.testing.chaos.node"],
            {**common, **variables},
            own / "logs",
        )
        nodes.append(Node(f"node-{number}", program, Cable(port, grpc_port), own))
    return Cluster(
        Program("control", argv, environment, state / "logs"),
        nodes,
        Cable(front_port, http_port),
        state,
        clocks,
        f"http://127.0.0.1:{http_port}",
    )


def _environment(configs: Path) -> dict[str, str]:
    """What every process gets."""
    given = {name: value for name, value in os.environ.items() if not name.startswith("PLAIT_")}
    return {**given, "PLAIT_MODEL_CONFIGS": str(configs), "PLAIT_MODELS": MODEL}


def _write_config(folder: Path, config: Path) -> Path:
    """The model's config, with few slots in a replica, and none until one is asked for."""
    document = yaml.safe_load(config.read_text("utf-8"))
    document["batchSize"] = NUM_SLOTS
    document["plait"]["replicas"] = 0
    source = document["plait"]["source"]
    if "folder" in source:
        source["folder"] = str((config.parent.parent / source["folder"]).absolute())
    configs = folder / "model_configs"
    shutil.rmtree(configs, ignore_errors=True)
    configs.mkdir(parents=True)
    (configs / f"{MODEL}.yaml").write_text(yaml.safe_dump(document), "utf-8")
    return configs


def _free_ports(count: int) -> list[int]:
    found: list[int] = []
    while len(found) < count:
        port = random.choice(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in found:
                found.append(port)
    return found


def _runs(process: psutil.Process | None) -> bool:
    """Whether a process is there and not stopped."""
    if process is None:
        return False
    try:
        return process.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
