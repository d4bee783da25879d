"""One step of the pipeline as a value, and as the fixed-size header that crosses processes.

A *step* runs some rows through all stages. Each row belongs to one slot of the cache and brings
``num_tokens`` tokens that start at position ``start``; a step is as wide as its longest row. Rows
with ``num_tokens`` 0 only keep slots contiguous and are computed for nothing.

The header is a vector of 64-bit integers of a size both ends know, so that a receive can be
posted before anything is sent. Floats travel as their bits.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final


class Operation(IntEnum):
    """What a header asks a stage to do."""

    #: The pipeline closes; nothing follows.
    STOP = 0
    #: Run the rows through the layers.
    FORWARD = 1
    #: Nothing: a heartbeat, answered like a step.
    BEAT = 2


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the token after a row is drawn."""

    #: 0: the most likely one.
    temperature: float = 0.0
    #: 0: all tokens are candidates.
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """The share of one sequence in a step."""

    slot: int
    #: Position of the first token.
    start: int
    num_tokens: int
    sampling: Sampling = Sampling()


@dataclass(frozen=True, slots=True)
class Step:
    """Rows that go through the stages together."""

    operation: Operation
    #: Tokens of the widest row.
    width: int = 0
    #: Positions from 0 that are attended to: the longest row's end, rounded up.
    window: int = 0
    rows: tuple[Row, ...] = ()


_HEAD: Final = 4
_PER_ROW: Final = 7


def header_size(max_rows: int) -> int:
    """Integers in a header with room for ``max_rows`` rows."""
    return _HEAD + _PER_ROW * max_rows


def encode(step: Step, max_rows: int) -> list[int]:
    """The header of a step."""
    words = [int(step.operation), step.width, step.window, len(step.rows)]
    for row in step.rows:
        how = row.sampling
        words += [row.slot, row.start, row.num_tokens]
        words += [_bits(how.temperature), how.top_k, _bits(how.top_p), how.seed]
    return words + [0] * (header_size(max_rows) - len(words))


def decode(words: Sequence[int]) -> Step:
    """The step of a header."""
    operation, width, window, num_rows = words[:_HEAD]
    rows = []
    for first in range(_HEAD, _HEAD + _PER_ROW * num_rows, _PER_ROW):
        slot, start, num_tokens, temperature, top_k, top_p, seed = words[first : first + _PER_ROW]
        how = Sampling(_float(temperature), top_k, _float(top_p), seed)
        rows.append(Row(slot, start, num_tokens, how))
    return Step(Operation(operation), width, window, tuple(rows))


def _bits(number: float) -> int:
    return int(struct.unpack("<q", struct.pack("<d", number))[0])


def _float(bits: int) -> float:
    return float(struct.unpack("<d", struct.pack("<q", bits))[0])
