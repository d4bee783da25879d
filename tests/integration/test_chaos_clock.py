"""Clocks of real processes are turned while they run, and nothing is left of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from scheduler.testing.chaos.clockwork import FakeClock, sweep
from tests.waiting import wait_for

#: Tells both clocks whenever it reads a line.
CLOCK = "import sys, time\nfor _ in sys.stdin: print(time.time(), time.monotonic(), flush=True)"


def test_a_clock_jumps_in_a_process_that_runs_and_its_monotonic_clock_does_not(
    tmp_path: Path,
) -> None:
    clock = FakeClock(tmp_path / "clock")
    with subprocess.Popen(
        [sys.executable, "-c", CLOCK],
        env={**os.environ, **clock.environment()},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def offsets() -> list[int]:
            process.stdin.write("\n")
            process.stdin.flush()
            now, monotonic = map(float, process.stdout.readline().split())
            return [round(now - time.time(), -1), round(monotonic - time.monotonic(), -1)]

        assert offsets() == [0, 0]
        clock.turn(-1000.0)
        assert wait_for("the jump", lambda: (seen := offsets())[0] and seen) == [-1000, 0]
        process.stdin.close()


def test_what_killed_processes_left_is_removed_and_what_others_have_is_not(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    mine = tmp_path / f"faketime_shm_{os.getpid()}"
    for path in (mine, tmp_path / "other", tmp_path / f"faketime_shm_{gone.pid}"):
        path.touch()
    (tmp_path / f"sem.faketime_sem_{gone.pid}").touch()

    assert sweep(tmp_path) == 2
    assert {path.name for path in tmp_path.iterdir()} == {mine.name, "other"}
