"""The supervisor on real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from scheduler.clock import SystemClock
from scheduler.errors import StartupError
from scheduler.supervisor import Program, Supervisor
from tests.waiting import until

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


def program(folder: Path, name: str, argv: list[str], **options: object) -> Program:
    return Program(
        name=name,
        command=lambda: argv,
        environment=dict(os.environ),
        cwd=folder,
        log_file=folder / f"{name}.log",
        **options,
    )


@asynccontextmanager
async def running(*programs: Program) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(programs, SystemClock())
    await supervisor.start()
    try:
        yield supervisor
    finally:
        await supervisor.stop()


async def test_a_killed_process_is_started_again(tmp_path: Path) -> None:
    async with running(program(tmp_path, "sleeper", SLEEP)) as supervisor:
        first = supervisor.pids()["sleeper"]

        os.kill(first, signal.SIGKILL)

        await until(lambda: supervisor.pids().get("sleeper", first) != first)


async def test_stopping_leaves_no_process(tmp_path: Path) -> None:
    async with running(program(tmp_path, "a", SLEEP), program(tmp_path, "b", SLEEP)) as supervisor:
        pids = supervisor.pids().values()

    assert not [pid for pid in pids if psutil.pid_exists(pid)]


async def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "open('ready', 'w').close(); time.sleep(600)"
    )
    argv = [sys.executable, "-c", stubborn]
    async with running(program(tmp_path, "stubborn", argv, stop_timeout_s=0.2)) as supervisor:
        await until((tmp_path / "ready").exists)
        pid = supervisor.pids()["stubborn"]

    assert not psutil.pid_exists(pid)


async def test_a_program_that_never_starts_is_given_up_with_its_last_words(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", "raise SystemExit('the cable is loose')"]
    async with running(program(tmp_path, "broken", argv)) as supervisor:
        with pytest.raises(StartupError, match=r"broken ended 5 times[\s\S]*the cable is loose"):
            await asyncio.wait_for(supervisor.failure(), 20)


async def test_a_program_that_cannot_be_started_again_ends_the_whole(tmp_path: Path) -> None:
    argv = [[sys.executable, "-c", "pass"]]

    def command() -> list[str]:
        if not argv:
            raise StartupError("there is no configuration any more")
        return argv.pop()

    once = Program("once", command, dict(os.environ), tmp_path, tmp_path / "once.log")
    async with running(once) as supervisor:
        with pytest.raises(StartupError, match=r"once[\s\S]*there is no configuration any more"):
            await asyncio.wait_for(supervisor.failure(), 20)


async def test_every_process_is_stopped_although_clearing_up_after_one_fails(
    tmp_path: Path,
) -> None:
    def fail() -> None:
        raise OSError("for the test")

    programs = [program(tmp_path, "a", SLEEP), program(tmp_path, "b", SLEEP, after=fail)]
    async with running(*programs) as supervisor:
        pids = supervisor.pids().values()

    assert not [pid for pid in pids if psutil.pid_exists(pid)]


def test_children_die_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import asyncio, os, pathlib, sys
        from scheduler.clock import SystemClock
        from scheduler.supervisor import Program, Supervisor

        async def main():
            here = pathlib.Path(sys.argv[1])
            sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
            program = Program("child", lambda: sleep, dict(os.environ), here, here / "log")
            supervisor = Supervisor([program], SystemClock())
            await supervisor.start()
            print(supervisor.pids()["child"], flush=True)
            await supervisor.failure()

        asyncio.run(main())
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as supervisor:
        assert supervisor.stdout is not None
        lines = (line for line in supervisor.stdout if line.strip().isdigit())
        child = psutil.Process(int(next(lines)))
        supervisor.kill()

    child.wait(timeout=10)
