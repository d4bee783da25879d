"""It starts with one command, starts again quickly, and leaves nothing behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.acceptance.system import ROOT, System
from tests.waiting import wait_for

pytestmark = [pytest.mark.torchserve, pytest.mark.timeout(300)]


def is_alive(process: psutil.Process) -> bool:
    """Zombies are not: they wait for a first process that may never reap them."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def everything_gone(processes: list[psutil.Process]) -> bool:
    return not any(map(is_alive, processes))


def test_ctrl_c_stops_everything_and_a_second_start_is_quick(tmp_path: Path, configs: Path) -> None:
    plait = System(tmp_path, configs, "demo")
    plait.start()
    running = plait.processes()
    commands = " ".join(" ".join(process.cmdline()) for process in running)
    assert "ModelServer" in commands
    assert "torchrun" in commands

    assert plait.stop(signal.SIGINT) == 0
    assert everything_gone(running), [p.cmdline() for p in running if is_alive(p)]

    began = time.monotonic()
    plait.start()
    assert time.monotonic() - began < 30
    assert "ready" in plait.log.read_text()

    # The supervisor itself is killed: the kernel takes its children, and the ranks follow.
    running = plait.processes()
    assert plait.process is not None
    plait.process.kill()
    plait.process.wait()
    wait_for("every process to go", lambda: everything_gone(running), 60)


def test_a_taken_port_is_named_and_nothing_is_started(system: System) -> None:
    environment = {**system.environment, "PLAIT_STATE": str(system.state) + "-other"}
    second = subprocess.run(
        [sys.executable, "-m", "scheduler.cli", "up"],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert second.returncode == 1
    assert f"port {system.http_port} on 127.0.0.1 is taken" in second.stderr
    assert not Path(environment["PLAIT_STATE"]).exists()
