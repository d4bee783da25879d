"""Containers that are processes on this machine: each a ``plait node`` of its own.

For development and tests, and the one provider that needs nobody's account. A container is a folder
``<folder>/<key>`` and a process with this folder as its state. The process writes its own id into
the folder before it becomes ``plait node``, so whoever dies meanwhile, nobody starts a second one;
and it counts only while its environment says that it is this container, so an id that the system
has given to another process since means nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import psutil
import structlog

from handlers.value_checks import Check, boolean, number_from
from scheduler.providers.base import (
    Capabilities,
    Container,
    ContainerState,
    ProviderConfig,
    ProviderRefused,
    ProviderUnavailable,
    Surroundings,
    Terms,
    bounded,
)

log = structlog.get_logger(__name__)


def _words(value: object) -> str | None:
    if isinstance(value, list) and value and all(isinstance(word, str) and word for word in value):
        return None
    return 'must be a list of words, such as ["plait", "node"]'


SETTINGS: Final[Mapping[str, Check]] = {
    # What is run; its environment says where the control plane is.
    "command": _words,
    # Whether the containers end with the control plane, as whatever else it starts does.
    "ends_with_control_plane": boolean,
    # Seconds from being told to end until it is killed.
    "stop_timeout_s": number_from(0),
}
REQUIRED: Final = ()

_COMMAND: Final = (sys.executable, "-m", "scheduler.cli", "node")
_STOP_TIMEOUT_S: Final = 20.0
_PID, _ENDING = "pid", "ending"
_POLL_S: Final = 0.05


def secrets(settings: Mapping[str, Any]) -> tuple[str, ...]:  # noqa: ARG001  # it needs none
    """The secrets it needs."""
    return ()


class Provider:
    """Processes on this machine."""

    capabilities = Capabilities(removes_any=True, replaces_lost=False)

    def __init__(self, config: ProviderConfig, surroundings: Surroundings) -> None:
        self._config = config
        self._folder = surroundings.folder.absolute()
        self._environment = surroundings.environment
        self._command: Sequence[str] = config.settings.get("command", _COMMAND)
        self._stop_timeout_s = float(config.settings.get("stop_timeout_s", _STOP_TIMEOUT_S))
        self._ends_with_us = bool(config.settings.get("ends_with_control_plane", True))
        # A process that is being started looks like one that is gone.
        self._one_at_a_time = asyncio.Lock()
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._ending: dict[str, asyncio.Task[None]] = {}

    def __repr__(self) -> str:
        return f"<local.Provider {self._config.name} {self._folder}>"

    async def containers(self) -> Sequence[Container]:
        async with bounded(f"{self._config.name}: list processes"), self._one_at_a_time:
            return await asyncio.to_thread(self._list)

    async def create(self, key: str, count: int) -> None:  # noqa: ARG002  # a key is enough here
        async with bounded(f"{self._config.name}: start a process"), self._one_at_a_time:
            await asyncio.to_thread(self._start, key)

    async def remove(self, container_id: str, count: int) -> None:  # noqa: ARG002  # as above
        folder = self._folder / container_id
        if not folder.is_dir():
            return
        (folder / _ENDING).touch()
        if container_id not in self._ending:
            ending = asyncio.create_task(self._end(container_id), name=f"end {container_id}")
            self._ending[container_id] = ending
            ending.add_done_callback(lambda _: self._ending.pop(container_id, None))

    async def terms(self) -> Terms:
        return Terms()

    async def close(self) -> None:
        if self._ends_with_us and self._folder.is_dir():
            for folder in list(self._folder.iterdir()):
                await self.remove(folder.name, 0)
            await asyncio.gather(*self._ending.values(), return_exceptions=True)
        for ending in list(self._ending.values()):
            ending.cancel()
        for child in self._children.values():
            if child.poll() is None:
                # It lives on without us, which is otherwise warned of.
                child.returncode = 0

    # -- in a thread

    def _list(self) -> list[Container]:
        if not self._folder.is_dir():
            return []
        return [self._look(folder) for folder in sorted(self._folder.iterdir())]

    def _look(self, folder: Path) -> Container:
        process = _find(folder)
        if (folder / _ENDING).exists():
            state, reason = ContainerState.STOPPING, "told to end"
        elif process is not None:
            state, reason = ContainerState.RUNNING, ""
        else:
            state, reason = ContainerState.FAILED, self._end_of(folder.name)
        incarnation = "" if process is None else str(process.pid)
        return Container(folder.name, state, reason, key=folder.name, incarnation=incarnation)

    def _end_of(self, container_id: str) -> str:
        child = self._children.get(container_id)
        if child is None or (code := child.poll()) is None:
            return "its process is gone"
        return f"its process ended with {code if code >= 0 else signal.Signals(-code).name}"

    def _start(self, key: str) -> None:
        folder = self._folder / key
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            return  # created before, whatever became of it
        except OSError as error:
            raise ProviderUnavailable(f"{folder}: {error.strerror}") from error
        try:
            self._children[key] = self._spawn(folder)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise ProviderRefused(f"cannot run {self._command[0]}: {error.strerror}") from error

    def _spawn(self, folder: Path) -> subprocess.Popen[bytes]:
        mark = os.open(folder / _PID, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644)

        def write_own_id() -> None:
            os.write(mark, b"%d\n" % os.getpid())

        try:
            with (folder / "output.log").open("ab") as output:
                return subprocess.Popen(
                    self._command,
                    env=self._variables(folder),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    # Between fork and exec, with nothing but two system calls.
                    preexec_fn=write_own_id,  # noqa: PLW1509  # it takes no lock
                )
        finally:
            os.close(mark)

    def _variables(self, folder: Path) -> dict[str, str]:
        return {
            **self._environment,
            "PLAIT_PROVIDER": self._config.name,
            "PLAIT_CONTAINER": folder.name,
            "PLAIT_NODE": folder.name,
            "PLAIT_STATE": str(folder),
            "PLAIT_MODEL_STORE": str(folder / "archives"),
        }

    async def _end(self, container_id: str) -> None:
        folder, loop = self._folder / container_id, asyncio.get_running_loop()
        deadline = loop.time() + self._stop_timeout_s
        is_told = False
        while (process := await asyncio.to_thread(_find, folder)) is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                if loop.time() >= deadline:
                    process.kill()
                elif not is_told:
                    process.terminate()
                    is_told = True
            await asyncio.sleep(_POLL_S)
        await asyncio.to_thread(self._clear, folder)

    def _clear(self, folder: Path) -> None:
        if (child := self._children.pop(folder.name, None)) is not None:
            child.poll()
        shutil.rmtree(folder, ignore_errors=True)


def _find(folder: Path) -> psutil.Process | None:
    """The process of a container, if it lives."""
    try:
        process = psutil.Process(int((folder / _PID).read_text()))
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        environment: dict[str, Any] = process.environ()
    except (OSError, ValueError, psutil.Error):
        return None
    return process if environment.get("PLAIT_STATE") == str(folder) else None
