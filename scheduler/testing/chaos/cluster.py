"""The processes of a run: a control plane and nodes, started as a user starts them.

    control   ``plait control``                      started again when it ends, as systemd would
    node-1…   ``plait node``: supervisor ▸ model server, runner; its gRPC goes through a cable

Whatever ends by itself or by a fault is started again, unless a fault keeps it down. Everything is
killed by the kernel when this process is (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml

from scheduler.testing.chaos import clockwork, model_server
from scheduler.testing.chaos.cable import Cable
from scheduler.testing.chaos.program import Program, is_running

MODEL: Final = "demo"
#: Tasks that a replica works on at once.
NUM_SLOTS: Final = 4
#: Below the ports that the kernel gives to outgoing connections: one that listens again after a
#: minute must find its port free.
_PORTS: Final = range(20_000, 30_000)


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
        return all(
            is_running(self.program.find(role)) for role in ("itself", "runner", "model server")
        )


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
        clockwork.sweep()

    def num_whole_nodes(self) -> int:
        return sum(node.is_whole() for node in self.nodes)


def build(
    folder: Path, config: Path, *, num_nodes: int, step_s: float | None, state: Path
) -> Cluster:
    """A cluster in ``folder``; ``config`` is the YAML of the model to serve.

    ``step_s`` is what a token takes the light model servers; None: nodes run the real TorchServe.
    """
    http_port, grpc_port, front_port, *cables = _free_ports(3 + num_nodes)
    configs = _write_config(folder, config, is_real=step_s is None)
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
    environment = {**common, **control, **clocks["control"].environment()}
    nodes = []
    for number, port in enumerate(cables, 1):
        own = folder / f"node-{number}"
        variables = {
            "PLAIT_STATE": str(own),
            "PLAIT_NODE": f"node-{number}",
            "PLAIT_MODEL_STORE": str(own / "archives"),
            "PLAIT_CONTROL_ADDRESS": f"127.0.0.1:{port}",
        }
        argv = _plait("node")
        if step_s is not None:
            argv = [sys.executable, "-m", "scheduler.testing.chaos.node"]
            # Not Java's: its clock is left alone.
            variables |= {model_server.STEP_VARIABLE: str(step_s), **clocks["nodes"].environment()}
        program = Program(f"node-{number}", argv, {**common, **variables}, own / "logs")
        nodes.append(Node(f"node-{number}", program, Cable(port, grpc_port), own))
    return Cluster(
        Program("control", _plait("control"), environment, state / "logs"),
        nodes,
        Cable(front_port, http_port),
        state,
        clocks,
        f"http://127.0.0.1:{http_port}",
    )


def _plait(command: str) -> list[str]:
    return [sys.executable, "-m", "scheduler.cli", command]


def _environment(configs: Path) -> dict[str, str]:
    """What every process gets."""
    given = {name: value for name, value in os.environ.items() if not name.startswith("PLAIT_")}
    return {**given, "PLAIT_MODEL_CONFIGS": str(configs), "PLAIT_MODELS": MODEL}


def _write_config(folder: Path, config: Path, *, is_real: bool) -> Path:
    """The model's config, with few slots in a replica, and no replica until one is asked for."""
    document = yaml.safe_load(config.read_text("utf-8"))
    document["batchSize"] = NUM_SLOTS
    document["plait"]["replicas"] = 0
    if is_real:
        # In one stage: several nodes share this machine. And bit for bit what it would have been.
        document["torchrun"]["nproc-per-node"] = 1
        document["plait"]["resume"] = "exact"
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
