"""Likelihoods as whole numbers, so that their sums are exact.

A sum of floats depends on the order of its terms, and libraries choose that order by the shape of
the whole tensor: the same row would add up differently alone and in a batch. Sums of integers do
not. So a token's weight is ``exp((logit - peak) / temperature)`` in units of a power of two that
leaves room for the whole vocabulary in 63 bits. With a vocabulary of 2^18 that unit is 2^-43 of
the likeliest token, and the sum is off by 2^-26 of it at most.

All the rest of a draw is elementwise or compares, which no neighbour can change.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor

#: Elements worked on at once: what stays in a core's cache; what is worth a device's launch.
_CPU_ELEMENTS: Final = 1 << 17
_DEVICE_ELEMENTS: Final = 1 << 23


def precision(vocabulary_size: int) -> int:
    """How many binary places a weight has."""
    return 62 - vocabulary_size.bit_length()


def weigh(
    logits: Tensor, peaks: Tensor, temperatures: Tensor, vocabulary_size: int | None = None
) -> Tensor:
    """The weights of tokens, int64 [rows, tokens].

    Args:
        logits: float32 [rows, tokens], of the whole vocabulary where its size is not given.
        peaks: float64 [rows], the highest logit of each row.
        temperatures: float64 [rows].
    """
    places = precision(vocabulary_size or logits.shape[-1])
    scaled = logits.to(torch.float64).sub_(peaks[:, None]).div_(temperatures[:, None])
    return scaled.exp_().mul_(2.0**places).round_().to(torch.int64)


def total(logits: Tensor, peaks: Tensor, temperatures: Tensor) -> Tensor:
    """The sum of a whole row's weights, int64 [rows]."""
    result = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    for start, end in blocks(logits):
        part = weigh(logits[:, start:end], peaks, temperatures, logits.shape[-1])
        result += part.sum(dim=-1)
    return result


def blocks(logits: Tensor) -> Iterator[tuple[int, int]]:
    """Ranges of the vocabulary to work on one after the other; they change no result."""
    num_rows, vocabulary_size = logits.shape
    return _ranges(vocabulary_size, max(1024, _budget(logits) // max(1, num_rows)))


def spans(logits: Tensor) -> Iterator[tuple[int, int]]:
    """Ranges of rows to work on one after the other; they change no result."""
    num_rows, vocabulary_size = logits.shape
    return _ranges(num_rows, max(1, _budget(logits) // vocabulary_size))


def _budget(logits: Tensor) -> int:
    return _CPU_ELEMENTS if logits.device.type == "cpu" else _DEVICE_ELEMENTS


def _ranges(size: int, width: int) -> Iterator[tuple[int, int]]:
    for start in range(0, size, width):
        yield start, min(start + width, size)
