"""Keeps a few processes running and leaves none behind.

Each child runs in a session of its own, so that Ctrl-C reaches the supervisor alone and it can
stop the children in their order; each is killed by the kernel if the supervisor itself dies
(PR_SET_PDEATHSIG). A child that ends is started again after a pause that doubles while it keeps
failing; one that never gets going ends the whole with its last words.

It knows nothing of what the children do: what to start is a :class:`Program`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from scheduler.clock import Clock
from scheduler.errors import PlaitError, StartupError

log = structlog.get_logger(__name__)

#: Loaded before any fork: a child between fork and exec must not import or allocate much.
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG: Final = 1
_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 10.0
#: A child that lived this long was well; its next pause starts over.
_WELL_AFTER_S: Final = 20.0
#: Failures in a row after which a child that was never well is given up.
_MAX_FAILED_STARTS: Final = 5


@dataclass(frozen=True, slots=True)
class Program:
    """A process to keep running."""

    name: str
    #: Called before each start: what to run may differ from one start to the next (free ports).
    command: Callable[[], Sequence[str]]
    environment: Mapping[str, str]
    cwd: Path
    #: File its output goes to, appended.
    log_file: Path
    #: Seconds from SIGTERM until it is killed.
    stop_timeout_s: float = 15.0
    #: Called after each end of the process, to clear away what it left.
    after: Callable[[], object] = lambda: None


@dataclass(slots=True)
class _Child:
    program: Program
    process: asyncio.subprocess.Process | None = None
    failed_starts: int = 0
    keeper: asyncio.Task[None] | None = field(default=None, repr=False)


class Supervisor:
    """Runs programs in order; stops them in the opposite order."""

    def __init__(self, programs: Sequence[Program], clock: Clock) -> None:
        self._children = [_Child(program) for program in programs]
        self._clock = clock
        self._failed: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        running = sum(c.process is not None for c in self._children)
        return f"<Supervisor running={running}/{len(self._children)}>"

    async def start(self) -> None:
        """Start every program, in order."""
        self._failed = asyncio.get_running_loop().create_future()
        for child in self._children:
            await self._spawn(child)
            child.keeper = asyncio.create_task(self._keep(child))
            child.keeper.add_done_callback(self._keeper_ended)

    async def failure(self) -> None:
        """Wait until a program is given up.

        Raises:
            StartupError: always; its message ends with the program's last words.
        """
        if self._failed is None:
            raise RuntimeError("the supervisor has not been started")
        await asyncio.shield(self._failed)

    def pids(self) -> dict[str, int]:
        """Process ids of the children that run, by name."""
        return {c.program.name: c.process.pid for c in self._children if c.process is not None}

    async def stop(self) -> None:
        """Stop every program, the last one first; returns when all are gone."""
        for child in reversed(self._children):
            if child.keeper is not None:
                child.keeper.cancel()
                await asyncio.gather(child.keeper, return_exceptions=True)
            await self._end(child)

    async def _spawn(self, child: _Child) -> None:
        program = child.program
        argv = program.command()
        program.log_file.parent.mkdir(parents=True, exist_ok=True)
        supervisor = os.getpid()

        def die_with_supervisor() -> None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != supervisor:  # it died between fork and prctl
                os._exit(1)

        with program.log_file.open("ab") as output:
            child.process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(program.environment),
                cwd=program.cwd,
                start_new_session=True,
                preexec_fn=die_with_supervisor,
            )
        log.info("process_started", name=program.name, pid=child.process.pid)

    async def _keep(self, child: _Child) -> None:
        """Start the child again whenever it ends, until it is given up."""
        pause_s = _FIRST_PAUSE_S
        error = ""
        while True:
            started = self._clock.monotonic()
            how = error or await self._wait(child)
            was_well = self._clock.monotonic() - started >= _WELL_AFTER_S
            log.warning("process_ended", name=child.program.name, how=how, was_well=was_well)
            child.failed_starts = 0 if was_well else child.failed_starts + 1
            if child.failed_starts >= _MAX_FAILED_STARTS:
                self._give_up(child, how)
                return
            pause_s = _FIRST_PAUSE_S if was_well else min(pause_s * 2, _LONGEST_PAUSE_S)
            await asyncio.sleep(pause_s)
            error = await self._spawn_again(child)

    async def _wait(self, child: _Child) -> str:
        """Wait for the end of the process; how it ended."""
        assert child.process is not None
        code = await child.process.wait()
        child.process = None
        _clear_up(child.program)
        return f"with code {code}"

    async def _spawn_again(self, child: _Child) -> str:
        """Start it again; why that did not go, or nothing. It counts as a failed start."""
        try:
            await self._spawn(child)
        except (OSError, PlaitError) as error:
            return f"because it could not be started: {error}"
        return ""

    def _keeper_ended(self, keeper: asyncio.Task[None]) -> None:
        assert self._failed is not None
        error = None if keeper.cancelled() else keeper.exception()
        if error is not None and not self._failed.done():
            self._failed.set_exception(error)

    def _give_up(self, child: _Child, how: str) -> None:
        assert self._failed is not None
        program = child.program
        words = last_lines(program.log_file, 15)
        if not self._failed.done():
            self._failed.set_exception(
                StartupError(
                    f"{program.name} ended {child.failed_starts} times right after its start, at "
                    f"last {how}; its log {program.log_file} ends with:\n{words}"
                )
            )

    async def _end(self, child: _Child) -> None:
        process = child.process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), child.program.stop_timeout_s)
        except TimeoutError:
            log.warning("process_killed", name=child.program.name, pid=process.pid)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        child.process = None
        _clear_up(child.program)
        log.info("process_stopped", name=child.program.name)


def _clear_up(program: Program) -> None:
    try:
        program.after()
    except Exception:
        # What was left stays until the next start; the other processes must not suffer for it.
        log.exception("not_cleared_up", name=program.name)


def last_lines(path: Path, count: int) -> str:
    """The last ``count`` lines of a text file; empty when there is none."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 16_384))
        lines = file.read().decode("utf-8", "replace").splitlines()
    return "\n".join(lines[-count:])
