"""Decides in which pieces a file is fetched, and where their bytes go.

A file on this machine holds a source's file whole, or some of its tensors under a header of its
own: its *content* is literal bytes at the beginning and segments of the source's file behind them.
A *piece* is what one request asks for. Pieces lie on a grid over the source's file, so that a
manifest's digest of a cell checks one by itself; with such a digest a piece is always a whole cell,
even when only part of it is kept.

Pure: sizes in, pieces out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scheduler.sources.base import ChunkDigests


@dataclass(frozen=True, slots=True)
class Segment:
    """Bytes of the source's file that this machine's file holds."""

    source_start: int
    size_bytes: int
    target_start: int


@dataclass(frozen=True, slots=True)
class Content:
    """What a file on this machine consists of."""

    #: Literal bytes at its beginning; empty when it is the source's file.
    head: bytes
    #: In order of both starts; together with ``head`` they fill the file without a gap.
    segments: tuple[Segment, ...]

    @property
    def size_bytes(self) -> int:
        return len(self.head) + sum(segment.size_bytes for segment in self.segments)

    @property
    def fetched_bytes(self) -> int:
        """What of it comes from the source."""
        return sum(segment.size_bytes for segment in self.segments)


@dataclass(frozen=True, slots=True)
class Piece:
    """What one request asks for: bytes ``start`` to before ``end`` of the source's file."""

    start: int
    end: int
    #: Those of its bytes that are kept, and where.
    kept: tuple[Segment, ...]
    #: SHA-256 of all of its bytes; empty: not known.
    sha256: str = ""

    @property
    def kept_bytes(self) -> int:
        return sum(segment.size_bytes for segment in self.kept)


def whole(size_bytes: int) -> Content:
    """The source's file as it is."""
    segments = (Segment(0, size_bytes, 0),) if size_bytes else ()
    return Content(b"", segments)


def pieces(
    content: Content,
    file_bytes: int,
    piece_bytes: int,
    digests: ChunkDigests | None = None,
    is_ranged: bool = True,
) -> tuple[Piece, ...]:
    """What to ask for, in the order of the file.

    ``file_bytes`` is the size of the source's file; ``piece_bytes`` the width of the grid where no
    digests say it.
    """
    if not content.segments:
        return ()
    if not is_ranged:
        # It comes from its first byte to its last or not at all.
        return (Piece(0, file_bytes, content.segments),)
    width = digests.chunk_bytes if digests is not None else piece_bytes
    cells: dict[int, list[Segment]] = {}
    for segment in content.segments:
        for part in _cut(segment, width):
            cells.setdefault(part.source_start // width, []).append(part)
    if digests is not None:
        return tuple(
            Piece(n * width, min((n + 1) * width, file_bytes), tuple(kept), digests.values[n])
            for n, kept in sorted(cells.items())
        )
    return tuple(
        Piece(run[0].source_start, _end(run[-1]), tuple(run))
        for _, kept in sorted(cells.items())
        for run in _runs(kept)
    )


def _cut(segment: Segment, width: int) -> list[Segment]:
    """A segment, cut where cells of the grid end."""
    parts, at, end = [], segment.source_start, _end(segment)
    while at < end:
        stop = min((at // width + 1) * width, end)
        parts.append(Segment(at, stop - at, segment.target_start + at - segment.source_start))
        at = stop
    return parts


def _runs(kept: Sequence[Segment]) -> list[list[Segment]]:
    """Segments of one cell, together where one goes on at the end of the other."""
    runs: list[list[Segment]] = []
    for segment in kept:
        if runs and _end(runs[-1][-1]) == segment.source_start:
            runs[-1].append(segment)
        else:
            runs.append([segment])
    return runs


def _end(segment: Segment) -> int:
    return segment.source_start + segment.size_bytes
