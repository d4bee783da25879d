"""The ways to serve that are compared: each a Plait of its own, started and stopped here."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

_START_WITHIN_S = 240.0
_STOP_WITHIN_S = 60.0
ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True, slots=True)
class Way:
    """Where requests go, and what they carry."""

    name: str
    url: str
    headers: dict[str, str] = field(default_factory=dict)
    #: Fields of every request.
    more: dict[str, Any] = field(default_factory=dict)

    def headers_of(self, tenant: str) -> dict[str, str]:
        return {"content-type": "application/json", "X-Plait-Tenant": tenant, **self.headers}


@contextmanager
def plait(name: str, folder: Path, policy: str) -> Iterator[Way]:
    """Through Plait, under a fairness policy."""
    with _running(folder, policy) as address:
        yield Way(name, f"{address}/predictions/demo", more={"stream": True})


@contextmanager
def torchserve(name: str, folder: Path) -> Iterator[Way]:
    """Straight to the TorchServe that a Plait keeps, as if there were no Plait."""
    with _running(folder, "virtual_time"):
        home = folder / "state" / "torchserve"
        port = json.loads((home / "endpoints.json").read_text())["inference"]
        key = json.loads((home / "key_file.json").read_text())["inference"]["key"]
        url = f"http://127.0.0.1:{port}/predictions/demo__r0"
        yield Way(name, url, {"Authorization": f"Bearer {key}"})


@contextmanager
def _running(folder: Path, policy: str) -> Iterator[str]:
    """``plait up`` with the demo model; its address."""
    http_port, grpc_port = _free_ports(2)
    address = f"http://127.0.0.1:{http_port}"
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("PLAIT_")},
        "PLAIT_HTTP_PORT": str(http_port),
        "PLAIT_GRPC_PORT": str(grpc_port),
        "PLAIT_STATE": str(folder / "state"),
        "PLAIT_MODEL_STORE": str(folder / "archives"),
        "PLAIT_POLICY": policy,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "up.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "scheduler.cli", "up"],
            env=environment,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        _wait_ready(process, address, folder / "up.log")
        yield address
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(_STOP_WITHIN_S)


def _wait_ready(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    until = time.monotonic() + _START_WITHIN_S
    while True:
        if process.poll() is not None:
            raise RuntimeError(f"plait up ended:\n{log.read_text()[-2000:]}")
        try:
            if requests.get(f"{address}/ready", timeout=2).status_code == 200:
                return
        except requests.ConnectionError:
            pass
        if time.monotonic() > until:
            raise TimeoutError(f"plait up was not ready within {_START_WITHIN_S:.0f} s; see {log}")
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
