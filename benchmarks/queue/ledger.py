"""When each task was submitted, began and was done, in a file that all processes map.

A task of every contender does nothing but write here, which takes a microsecond or two and needs
no server of its own. What was written stays when the writer is killed. Moments are of the
machine's monotonic clock, which is one for all processes.
"""

from __future__ import annotations

import mmap
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_ROW = struct.Struct("dddd")
_MOMENT = struct.Struct("d")
_SUBMITTED, _BEGUN, _DONE, _NUM_RUNS = (n * _MOMENT.size for n in range(4))


@dataclass(frozen=True, slots=True)
class Row:
    """One task; a moment is None as long as it has not come."""

    submitted_at: float | None
    #: Of the first run.
    begun_at: float | None
    #: The first time that it was done.
    done_at: float | None
    #: Times that it was begun.
    num_runs: int


class Ledger:
    """Rows by the tasks' numbers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)

    @classmethod
    def create(cls, path: Path, num_rows: int) -> Ledger:
        """An empty ledger; one that was there is replaced."""
        path.unlink(missing_ok=True)
        path.write_bytes(bytes(_ROW.size * num_rows))
        return cls(path)

    def submitted(self, index: int) -> None:
        self._put(index, _SUBMITTED, time.monotonic())

    def begun(self, index: int) -> None:
        if not self._get(index, _BEGUN):
            self._put(index, _BEGUN, time.monotonic())
        self._put(index, _NUM_RUNS, self._get(index, _NUM_RUNS) + 1)

    def done(self, index: int) -> None:
        if not self._get(index, _DONE):
            self._put(index, _DONE, time.monotonic())

    def num_done(self, indices: Iterable[int]) -> int:
        return sum(bool(self._get(index, _DONE)) for index in indices)

    def rows(self, indices: Iterable[int]) -> list[Row]:
        found = (_ROW.unpack_from(self._map, index * _ROW.size) for index in indices)
        return [Row(row[0] or None, row[1] or None, row[2] or None, int(row[3])) for row in found]

    def _put(self, index: int, offset: int, value: float) -> None:
        _MOMENT.pack_into(self._map, index * _ROW.size + offset, value)

    def _get(self, index: int, offset: int) -> float:
        (value,) = _MOMENT.unpack_from(self._map, index * _ROW.size + offset)
        return float(value)
