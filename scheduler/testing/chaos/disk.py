"""A small disk for the store, so that filling it hurts nobody else."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def small(folder: Path, size_mib: int) -> Iterator[tuple[Path, bool]]:
    """``folder`` as a file system of its own, and True; a plain folder, and False, where mounting
    is not permitted. What is in it is kept afterwards, in a plain folder."""
    folder.mkdir(parents=True, exist_ok=True)
    options = ["-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", str(folder)]
    mount = subprocess.run(["mount", *options], capture_output=True, check=False)
    if mount.returncode != 0:
        yield folder, False
        return
    try:
        yield folder, True
    finally:
        kept = folder.with_name(folder.name + ".kept")
        shutil.copytree(folder, kept, dirs_exist_ok=True)
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()
        kept.rename(folder)
