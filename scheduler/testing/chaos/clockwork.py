"""Clocks that jump: libfaketime turns the wall clock of real processes while they run.

A file holds how far the clock is off; every process that was started with the environment given
here looks at it about once a second. The monotonic clock is left alone, as it is when somebody
sets the time.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Final

import psutil

_LIBRARY: Final = "vendor/libfaketime/src/libfaketime.so.1"
#: Where the library keeps a file and a semaphore for each process, by its id.
_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108  # the library chooses it
_LEFT: Final = re.compile(r"(?:faketime_shm|sem\.faketime_sem)_(\d+)")


def library() -> Path | None:
    """The library to preload; None where it is not installed."""
    spec = importlib.util.find_spec("libfaketime")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / _LIBRARY
    return path if path.is_file() else None


def sweep(folder: Path = _SHARED_MEMORY) -> int:
    """Remove what processes that were killed have left there; how many files."""
    count = 0
    for path in folder.glob("*faketime_*"):
        if (match := _LEFT.fullmatch(path.name)) and not psutil.pid_exists(int(match[1])):
            path.unlink(missing_ok=True)
            count += 1
    return count


class FakeClock:
    """The clock of some processes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.offset_s = 0.0
        path.parent.mkdir(parents=True, exist_ok=True)
        self.turn(0.0)

    def turn(self, offset_s: float) -> None:
        """Be off by so many seconds from now on."""
        self.offset_s = offset_s
        partial = self._path.with_suffix(".partial")
        partial.write_text(f"{offset_s:+.3f}\n")
        partial.replace(self._path)

    def environment(self) -> dict[str, str]:
        """What processes with this clock are started with; nothing where there is no library."""
        found = library()
        if found is None:
            return {}
        return {
            "LD_PRELOAD": str(found),
            "FAKETIME_TIMESTAMP_FILE": str(self._path),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            # Its way with waits on the monotonic clock, for old versions of glibc, has threads
            # that wait for the interpreter's lock spin: a tenth of the hand-overs were left.
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",
        }
