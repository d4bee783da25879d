"""A process that is kept running, and the processes that it has started in turn."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import psutil

_AGAIN_S: Final = 0.3
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG: Final = 1


def _says(*words: str) -> Callable[[psutil.Process], bool]:
    """Whether a process's command line holds one of the words."""

    def is_it(process: psutil.Process) -> bool:
        line = " ".join(process.cmdline())
        return any(word in line for word in words)

    return is_it


_is_stage = _says("handlers.pipeline.stage_process")


def _is_driver(process: psutil.Process) -> bool:
    return process.environ().get("RANK") == "0" and not _is_stage(process)


#: What a process is known by.
_ROLES: Final[Mapping[str, Callable[[psutil.Process], bool]]] = {
    "runner": _says("scheduler.cli runner"),
    "model server": _says("chaos.model_server", "org.pytorch.serve.ModelServer"),
    "driver": _is_driver,
    "stage": _is_stage,
}
#: Those that a model server has started, and not the program itself.
_DEEP: Final = frozenset({"driver", "stage"})


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
            for child in own.children(recursive=role in _DEEP):
                if _ROLES[role](child):
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


def is_running(process: psutil.Process | None) -> bool:
    """Whether a process is there and not stopped."""
    if process is None:
        return False
    try:
        return process.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
