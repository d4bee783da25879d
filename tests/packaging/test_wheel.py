"""What ships: the two packages with their data, one command, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, root: Path) -> zipfile.ZipFile:
    """The wheel, built from a copy so that the repository stays clean."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, source)
    for name in ("handlers", "scheduler"):
        shutil.copytree(root / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", folder, source]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_the_wheel_holds_the_two_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}

    assert {top for top in tops if not top.endswith(".dist-info")} == {"handlers", "scheduler"}


@pytest.mark.parametrize("pattern", ["v0*.py", "*.proto", "*.xml", "py.typed"])
def test_every_data_file_of_the_packages_is_in_the_wheel(
    wheel: zipfile.ZipFile, root: Path, pattern: str
) -> None:
    there = [
        str(path.relative_to(root))
        for package in ("handlers", "scheduler")
        for path in (root / package).rglob(pattern)
    ]

    assert there
    assert set(there) <= set(wheel.namelist())


def test_the_wheel_installs_the_plait_command(wheel: zipfile.ZipFile) -> None:
    name = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))

    assert "plait = scheduler.cli:main" in wheel.read(name).decode()
