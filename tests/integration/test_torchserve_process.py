"""TorchServe's configuration and environment, and the sweep for what it leaves behind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest

from scheduler.errors import StartupError
from scheduler.torchserve import process
from scheduler.torchserve.endpoint import Endpoint, NotRunning
from tests.waiting import wait_for

SLEEPER = "import time; print('up', flush=True); time.sleep(100)"
TELLER = "import os, time; print(os.getpid(), flush=True); time.sleep(100)"


@pytest.fixture
def state(tmp_path: Path, root: Path) -> Path:
    """A state folder whose next start is configured."""
    process.write_config(tmp_path / "s", tmp_path / "archives", root / "config.properties")
    return tmp_path / "s"


@pytest.fixture
def children() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for child in started:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


def start(
    children: list[subprocess.Popen[bytes]],
    environment: Mapping[str, str],
    folder: Path | None = None,
) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(
        [sys.executable, "-c", SLEEPER],
        env=dict(environment),
        cwd=folder,
        stdout=subprocess.PIPE,
    )
    children.append(child)
    assert child.stdout is not None
    assert child.stdout.readline() == b"up\n"
    return child


def test_the_ports_of_a_start_are_published(state: Path) -> None:
    published = json.loads((process.folder(state) / "endpoints.json").read_text())

    assert Endpoint(state).url("inference") == f"http://127.0.0.1:{published['inference']}"
    assert len(set(published.values())) == 5


def test_the_configuration_says_what_was_chosen_for_this_start(state: Path) -> None:
    ports = json.loads((process.folder(state) / "endpoints.json").read_text())
    lines = (process.folder(state) / "config.properties").read_text().splitlines()

    assert f"management_address=http://127.0.0.1:{ports['management']}" in lines
    assert "enable_model_api=true" in lines
    assert not any("disable_token_authorization=true" in line for line in lines)


def test_every_setting_that_ships_has_a_reason(root: Path) -> None:
    before = ""
    for line in (root / "config.properties").read_text().splitlines():
        if line and not line.startswith("#"):
            assert before.startswith("#") or "=" in before, f"{line} has no comment before it"
        before = line


def test_keys_of_an_earlier_start_are_not_read(state: Path, tmp_path: Path, root: Path) -> None:
    (process.folder(state) / "key_file.json").write_text('{"inference": {"key": "old"}}')

    process.write_config(state, tmp_path / "archives", root / "config.properties")

    with pytest.raises(NotRunning):
        Endpoint(state).headers("inference")


def test_a_long_path_moves_the_sockets_to_a_short_one(tmp_path: Path) -> None:
    long = process.temp_folder(tmp_path / ("x" * 100))

    assert len(str(long / ".ts.sock.29500")) < 108
    assert long != process.temp_folder(tmp_path / ("y" * 100))


def test_a_missing_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"nowhere\.properties"):
        process.write_config(tmp_path, tmp_path, tmp_path / "nowhere.properties")


def test_a_sweep_kills_what_torchserve_left(
    state: Path, children: list[subprocess.Popen[bytes]]
) -> None:
    orphan = start(children, process.environment(state))

    assert process.sweep_orphans(state) == [orphan.pid]
    assert not psutil.pid_exists(orphan.pid)


def test_a_sweep_spares_other_processes_of_the_same_state(
    state: Path, children: list[subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    own = {process.STATE_VARIABLE: str(state.absolute())}
    spared = [start(children, own), start(children, process.environment(tmp_path / "other"))]

    assert process.sweep_orphans(state) == []
    assert [child.poll() for child in spared] == [None, None]


def test_a_sweep_spares_the_torchserve_that_runs(
    state: Path, children: list[subprocess.Popen[bytes]]
) -> None:
    running, orphan = (start(children, process.environment(state)) for _ in range(2))

    assert process.sweep_orphans(state, keep=running.pid) == [orphan.pid]
    assert running.poll() is None


def test_a_sweep_of_a_replica_kills_what_works_in_its_folder_and_nothing_else(
    state: Path, children: list[subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    folders = [tmp_path / "demo__r0", tmp_path / "demo__r1"]
    for folder in folders:
        folder.mkdir()
    left, other = (start(children, process.environment(state), folder) for folder in folders)

    assert process.sweep_replica(state, "demo__r0") == [left.pid]
    assert other.poll() is None


def test_a_tied_program_dies_with_whoever_started_it(tmp_path: Path) -> None:
    script = tmp_path / "tied"
    process.tie_to_parent(script, Path(sys.executable))
    start = f"import subprocess; subprocess.run([{str(script)!r}, '-c', {TELLER!r}])"
    parent = subprocess.Popen([sys.executable, "-c", start], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    tied = psutil.Process(int(parent.stdout.readline()))

    parent.kill()
    parent.wait()

    # The pipe's other end closes when the last of the two goes, a moment before it is a zombie.
    assert parent.stdout.read() == b""
    parent.stdout.close()
    wait_for("its end", lambda: not tied.is_running() or tied.status() == psutil.STATUS_ZOMBIE, 10)
