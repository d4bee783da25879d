"""Finds how far down a row's likeliest tokens reach, without sorting the row.

The search goes digit by digit (a radix select): each logit's bits are mapped to an integer of 32
bits that sorts the same way, tokens are gathered in a bucket for each value of its upper half, the
buckets are added up from the top until the target is reached, and the lower half decides within
that bucket. Buckets hold integers, so neither the order of additions nor a neighbour matters.
"""

from __future__ import annotations

import torch
from torch import Tensor

_HALF = 16
_OFFSET = 1 << 31


def reach(logits: Tensor, amounts: Tensor, targets: Tensor) -> Tensor:
    """The highest logit at which the tokens that are no less likely amount to the target.

    Args:
        logits: float32 [rows, vocabulary].
        amounts: int64 [rows, vocabulary], what each token adds, 0 or more.
        targets: int64 [rows], from 1 to the sum of the row's amounts.

    Returns:
        float64 [rows]: values that occur in the rows.
    """
    order = sortable(logits) + _OFFSET
    upper, lower = order >> _HALF, order & ((1 << _HALF) - 1)
    first, above = _bucket(upper, amounts, targets)
    is_in = upper == first[:, None]
    # Tokens of other buckets add nothing, and add it all over: lower halves are often all equal.
    second, _ = _bucket(lower.where(is_in, upper), amounts.where(is_in, 0), targets - above)
    return _logit((first << _HALF | second) - _OFFSET)


def sortable(logits: Tensor) -> Tensor:
    """int64 values from -2^31 to 2^31 - 1 that sort as the logits, which are float32, do."""
    bits = (logits + 0.0).view(torch.int32)  # plus 0, because -0.0 has bits of its own
    return _turned(bits).to(torch.int64)


def _logit(sorted_as: Tensor) -> Tensor:
    return _turned(sorted_as.to(torch.int32)).view(torch.float32).to(torch.float64)


def _turned(bits: Tensor) -> Tensor:
    # Floats below 0 fall as their bits, read as an integer, rise; done twice it changes nothing.
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _bucket(digits: Tensor, amounts: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The bucket that reaches the target, and what all higher ones amount to, int64 [rows]."""
    buckets = amounts.new_zeros(len(digits), 1 << _HALF).scatter_add_(1, digits, amounts)
    sums = buckets.flip(1).cumsum(dim=-1)
    place = (sums < targets[:, None]).sum(dim=-1).clamp(max=sums.shape[-1] - 1)[:, None]
    above = (sums - buckets.flip(1)).gather(1, place)[:, 0]
    return sums.shape[-1] - 1 - place[:, 0], above
