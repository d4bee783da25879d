"""Decides how texts of different lengths share the steps of an encoder's pipeline.

All micro-batches of a step have one shape, so each text is padded to its step's length. Padding is
wasted work, and so is a pipeline that is not full. Texts of about the same length therefore go
together; a group too small to fill the pipeline joins the next longer one, unless that would more
than double its work. Lengths are rounded up, so that few shapes occur and their buffers are used
again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

#: Lengths are rounded up to a multiple of this.
LENGTH_MULTIPLE: Final = 16
#: Most rows of one micro-batch; more only delays the texts that came first.
MAX_ROWS: Final = 16


@dataclass(frozen=True, slots=True)
class Shape:
    """What all ranks must agree on to take a step together."""

    num_micro_batches: int
    #: Rows of each micro-batch.
    rows: int
    #: Tokens of each row, padding included.
    length: int

    @property
    def num_rows(self) -> int:
        return self.num_micro_batches * self.rows


@dataclass(frozen=True, slots=True)
class Step:
    """One pass through the pipeline; rows beyond its texts are padding."""

    shape: Shape
    #: Which texts, as positions in the list that was planned.
    texts: tuple[int, ...]


def plan_steps(lengths: Sequence[int], num_lanes: int, longest: int) -> list[Step]:
    """Steps in which each text occurs once; ``longest`` is the most tokens a text may have."""
    steps: list[Step] = []
    for length, texts in _groups(lengths, num_lanes, longest):
        for start in range(0, len(texts), num_lanes * MAX_ROWS):
            part = texts[start : start + num_lanes * MAX_ROWS]
            rows = -(-len(part) // num_lanes)
            steps.append(Step(Shape(-(-len(part) // rows), rows, length), tuple(part)))
    return steps


def _groups(
    lengths: Sequence[int], num_lanes: int, longest: int
) -> Iterator[tuple[int, list[int]]]:
    """Texts by the length they are padded to, shortest first."""

    def padded(text: int) -> int:
        return min(-(-lengths[text] // LENGTH_MULTIPLE) * LENGTH_MULTIPLE, longest)

    by_length = sorted(range(len(lengths)), key=lambda text: (lengths[text], text))
    shorter, waiting = 0, list[int]()
    for length, texts in groupby(by_length, key=padded):
        if len(waiting) >= num_lanes or length > 2 * shorter:
            if waiting:
                yield shorter, waiting
            waiting = []
        waiting += texts
        shorter = length
    if waiting:
        yield shorter, waiting
