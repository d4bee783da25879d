"""In which pieces a file is fetched."""

from __future__ import annotations

import hashlib
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from scheduler.downloader.layout import Content, Piece, Segment, pieces, whole
from scheduler.sources.base import ChunkDigests


def applied(cut: tuple[Piece, ...], content: Content, source: bytes) -> bytes:
    """The file that comes of fetching the pieces."""
    target = bytearray(content.size_bytes)
    target[: len(content.head)] = content.head
    for piece in cut:
        for s in piece.kept:
            got = source[piece.start : piece.end][s.source_start - piece.start :][: s.size_bytes]
            target[s.target_start : s.target_start + s.size_bytes] = got
    return bytes(target)


def chosen(source: bytes, cuts: list[int]) -> Content:
    """Every other stretch of the source between the cuts, moved together behind a head."""
    edges = sorted({0, len(source), *(cut % (len(source) + 1) for cut in cuts)})
    segments, at = [], 4
    for start, end in list(pairwise(edges))[::2]:
        segments.append(Segment(start, end - start, at))
        at += end - start
    return Content(b"head", tuple(segments))


@given(st.binary(max_size=200), st.integers(1, 40))
def test_the_pieces_of_a_whole_file_are_the_file(source: bytes, width: int) -> None:
    content = whole(len(source))

    cut = pieces(content, len(source), width)

    assert applied(cut, content, source) == source
    assert all(piece.end - piece.start <= width for piece in cut)


@given(st.binary(min_size=1, max_size=200), st.lists(st.integers(0, 200)), st.integers(1, 40))
def test_only_what_is_kept_is_asked_for(source: bytes, cuts: list[int], width: int) -> None:
    content = chosen(source, cuts)

    cut = pieces(content, len(source), width)

    kept = b"".join(source[s.source_start :][: s.size_bytes] for s in content.segments)
    assert applied(cut, content, source) == b"head" + kept
    assert sum(piece.end - piece.start for piece in cut) == content.fetched_bytes


@given(st.binary(min_size=1, max_size=200), st.lists(st.integers(0, 200)), st.integers(1, 40))
def test_with_digests_pieces_are_whole_cells(source: bytes, cuts: list[int], width: int) -> None:
    content = chosen(source, cuts)
    cells = [source[at : at + width] for at in range(0, len(source), width)]
    values = tuple(hashlib.sha256(cell).hexdigest() for cell in cells)

    cut = pieces(content, len(source), 7, ChunkDigests(width, values))

    for piece in cut:
        assert hashlib.sha256(source[piece.start : piece.end]).hexdigest() == piece.sha256
    kept = b"".join(source[s.source_start :][: s.size_bytes] for s in content.segments)
    assert applied(cut, content, source) == b"head" + kept


def test_a_file_without_ranges_is_one_piece() -> None:
    (piece,) = pieces(whole(100), 100, 10, is_ranged=False)

    assert (piece.start, piece.end) == (0, 100)


def test_an_empty_file_needs_no_piece() -> None:
    assert pieces(whole(0), 0, 10) == ()
