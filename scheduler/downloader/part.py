"""A file in progress on disk: what it holds survives whatever kills its process.

Beside the data lies a journal with a line for each piece that is whole: its range and the CRC of
its bytes. Bytes are written first, their line afterwards, so a process that is killed leaves at
most bytes that no line speaks of. Nothing is trusted that was written by an earlier process: each
line's bytes are read and checked before the piece counts, which also finds what a machine lost that
went down with data not yet on its disk. A file gets its name only when all of it hashes to what it
should, is on disk, and is renamed.

It does no network, and knows no model. Callers hold the lock of the file's key.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from scheduler.downloader.layout import Content, Piece, Segment

_READ_BYTES: Final = 4 * 1024 * 1024
DATA_SUFFIX: Final = ".part"
JOURNAL_SUFFIX: Final = ".journal"


class Part:
    """One file in progress."""

    def __init__(self, folder: Path, key: str, content: Content, pieces: Sequence[Piece]) -> None:
        self.path = folder / f"{key}{DATA_SUFFIX}"
        self._journal_path = folder / f"{key}{JOURNAL_SUFFIX}"
        self.content = content
        self._pieces = {(piece.start, piece.end): piece for piece in pieces}
        self._crcs: dict[tuple[int, int], int] = {}
        self._data = -1
        self._journal = -1

    def __repr__(self) -> str:
        return f"<Part {self.path.name} {len(self._crcs)}/{len(self._pieces)}>"

    def open(self) -> None:
        """Take up what is there; slow, because it is read and checked."""
        self._data = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        os.ftruncate(self._data, self.content.size_bytes)
        if self.content.head:
            os.pwrite(self._data, self.content.head, 0)
        self._crcs = self._read_journal()
        self.drop_damaged()

    def close(self) -> None:
        for descriptor in (self._data, self._journal):
            if descriptor >= 0:
                os.close(descriptor)
        self._data = self._journal = -1

    @property
    def missing(self) -> list[Piece]:
        """Pieces that are not whole yet, in order."""
        return [piece for key, piece in self._pieces.items() if key not in self._crcs]

    @property
    def held_bytes(self) -> int:
        """Bytes of whole pieces."""
        return sum(self._pieces[key].kept_bytes for key in self._crcs)

    @property
    def prefix_bytes(self) -> int:
        """Up to where the file holds everything."""
        for key, piece in self._pieces.items():
            if key not in self._crcs:
                return piece.kept[0].target_start
        return self.content.size_bytes

    def write(self, block: bytes, start: int, kept: Sequence[Segment], crc: int) -> int:
        """Keep what of a block at ``start`` of the source's file is to be kept; the CRC goes on."""
        view, end = memoryview(block), start + len(block)
        for segment in kept:
            low = max(start, segment.source_start)
            high = min(end, segment.source_start + segment.size_bytes)
            if low < high:
                part = view[low - start : high - start]
                self._write_all(part, segment.target_start + low - segment.source_start)
                crc = zlib.crc32(part, crc)
        return crc

    def _write_all(self, view: memoryview, at: int) -> None:
        while view:
            written = os.pwrite(self._data, view, at)
            view, at = view[written:], at + written

    def record(self, piece: Piece, crc: int) -> None:
        """Note that a piece is whole."""
        self._crcs[piece.start, piece.end] = crc
        os.write(self._open_journal(), f"{piece.start} {piece.end} {crc:08x}\n".encode())

    def drop_damaged(self) -> int:
        """Forget pieces whose bytes are not those that came; returns how many."""
        damaged = [key for key, crc in self._crcs.items() if self._crc(self._pieces[key]) != crc]
        if damaged:
            for key in damaged:
                del self._crcs[key]
            self._rewrite_journal()
        return len(damaged)

    def drop_all(self) -> None:
        """Forget every piece."""
        self._crcs.clear()
        self._rewrite_journal()

    def hash_on(self, whole: Any, start: int, end: int) -> None:
        """Update a digest with bytes of the file."""
        at = start
        while at < end:
            block = os.pread(self._data, min(_READ_BYTES, end - at), at)
            if not block:
                raise OSError(f"{self.path} ends at {at}; it should have {end} bytes")
            whole.update(block)
            at += len(block)

    def sync(self) -> None:
        """Have every byte on disk."""
        os.fsync(self._data)

    def finish(self, target: Path) -> None:
        """Give the file, which is on disk, its name."""
        os.fchmod(self._data, 0o444)
        os.replace(self.path, target)
        sync_folder(target.parent)
        with contextlib.suppress(FileNotFoundError):
            self._journal_path.unlink()
        self.close()

    def discard(self) -> None:
        """Take it away."""
        self.close()
        for path in (self._journal_path, self.path):
            path.unlink(missing_ok=True)

    def _crc(self, piece: Piece) -> int:
        crc = 0
        for segment in piece.kept:
            at, end = segment.target_start, segment.target_start + segment.size_bytes
            while at < end:
                block = os.pread(self._data, min(_READ_BYTES, end - at), at)
                if not block:
                    return -1
                crc = zlib.crc32(block, crc)
                at += len(block)
        return crc

    def _open_journal(self) -> int:
        if self._journal < 0:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._journal = os.open(self._journal_path, flags, 0o644)
        return self._journal

    def _read_journal(self) -> dict[tuple[int, int], int]:
        """The pieces that lines speak of; the last line may have been cut short."""
        try:
            text = self._journal_path.read_bytes()
        except FileNotFoundError:
            return {}
        found: dict[tuple[int, int], int] = {}
        for line in text.split(b"\n"):
            try:
                start, end, crc = line.split()
                key, value = (int(start), int(end)), int(crc, 16)
            except ValueError:
                continue
            if key in self._pieces and len(crc) == 8:
                found[key] = value
        if not text.endswith(b"\n") or len(found) != text.count(b"\n"):
            # What is written next must not go on in the middle of a line.
            self._crcs = found
            self._rewrite_journal()
        return found

    def _rewrite_journal(self) -> None:
        if self._journal >= 0:
            os.close(self._journal)
            self._journal = -1
        lines = [f"{start} {end} {crc:08x}\n" for (start, end), crc in self._crcs.items()]
        beside = self._journal_path.with_suffix(".journal-new")
        beside.write_text("".join(lines), encoding="ascii")
        os.replace(beside, self._journal_path)


def sync_folder(folder: Path) -> None:
    """Have a rename in the folder on disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
