"""What ``plait up`` does around its processes: checks before, progress until READY.

The checks find what would make a child fail with words of its own (a taken port, a missing
folder) and say it once, in ours. The progress is read from the gateway, as any client could.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import aiohttp

from scheduler.clock import Clock
from scheduler.errors import StartupError
from scheduler.settings import Settings

DISTRIBUTION = "plait"
PACKAGES = ("handlers", "scheduler")
_POLL_S = 0.25


def version() -> str:
    """Plait's own; empty where it runs without having been installed."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return ""


def check(settings: Settings) -> None:
    """Refuse to start when a name or port is taken or a folder cannot be used.

    Raises:
        StartupError: names the port or folder, and the option to change it with.
    """
    check_names(packages_distributions())
    for port, option in ((settings.http_port, "http-port"), (settings.grpc_port, "grpc-port")):
        check_port(settings.host, port, option)
    if not settings.model_configs.is_dir():
        raise StartupError(
            f"there is no folder {settings.model_configs} with model configs; "
            "run in the repository, or name it with --model-configs"
        )
    try:
        settings.state.mkdir(parents=True, exist_ok=True)
        probe = settings.state / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise StartupError(f"cannot write to the state folder {settings.state}: {error}") from error


def check_names(owners: Mapping[str, Sequence[str]]) -> None:
    """Refuse an environment in which another distribution owns one of our package names.

    They are common words, and whoever comes first on the path would be imported.

    Raises:
        StartupError: names the distribution and the package.
    """
    for package in PACKAGES:
        if others := sorted(set(owners.get(package, ())) - {DISTRIBUTION}):
            raise StartupError(
                f"{', '.join(others)} also installs a package called {package!r}; "
                "give Plait an environment of its own"
            )


def check_port(host: str, port: int, option: str) -> None:
    """Raises StartupError when nothing can listen on the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                message = f"port {port} on {host} is taken; choose another with --{option}"
            else:
                message = f"cannot listen on {host}:{port} (--{option}): {error.strerror}"
            raise StartupError(message) from error


async def wait_until_ready(
    address: str, models: Sequence[str], tell: Callable[[str], None], timeout_s: float, clock: Clock
) -> None:
    """Return once every model has a READY replica; ``tell`` hears each change in between.

    Raises:
        StartupError: it took longer than ``timeout_s``; says what was missing last.
    """
    deadline = clock.monotonic() + timeout_s
    last = ""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
        while True:
            line = await _look(session, address)
            if line is None:
                return
            if line != last:
                tell(line)
                last = line
            if clock.monotonic() > deadline:
                raise StartupError(f"{', '.join(models)} not READY after {timeout_s:.0f} s: {last}")
            await asyncio.sleep(_POLL_S)


async def _look(session: aiohttp.ClientSession, address: str) -> str | None:
    """What is missing, in words; None when nothing is."""
    try:
        async with session.get(f"{address}/ready") as answer:
            if answer.status == 200:
                return None
        async with session.get(f"{address}/v1/models") as answer:
            return describe(await answer.json())
    except (aiohttp.ClientError, TimeoutError):
        return "starting the control plane"


def describe(listing: Mapping[str, Any]) -> str:
    """One line for a listing of models, such as ``demo 0/1 ready (starting: loading)``."""
    return "; ".join(_describe_model(model) for model in listing["models"]) or "no model"


def _describe_model(model: Mapping[str, Any]) -> str:
    replicas = model["replicas"]
    num_ready = sum(replica["state"] == "ready" for replica in replicas)
    line = f"{model['name']} {num_ready}/{model['desired_replicas']} ready"
    waiting = [r for r in replicas if r["state"] != "ready"]
    if not replicas:
        return f"{line} (waiting for TorchServe)"
    details = {f"{r['state']}{': ' + r['detail'] if r.get('detail') else ''}" for r in waiting}
    return f"{line} ({'; '.join(sorted(details))})" if details else line


def list_logs(state: Path) -> str:
    """Where to look when something does not start."""
    return f"logs are in {state / 'logs'} and {state / 'torchserve' / 'logs'}"
