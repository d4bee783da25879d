"""Noise that is no generator's next number but a hash of (seed, answer, position, token id).

So a token depends on its request and its place only: the same alone, in a batch, on another
machine and after a resume, and there is no state to carry. As noise belongs to a token and not to
a rank among candidates, logits that differ in their last bits reorder nothing.

The hash is splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014)
in wrapping 64-bit integers, the same to the bit on every device. Only the two logarithms that
follow may differ between devices, in their last bit.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

_ALL: Final = (1 << 64) - 1
_GOLDEN: Final = 0x9E3779B97F4A7C15
_FIRST: Final = 0xBF58476D1CE4E5B9
_SECOND: Final = 0x94D049BB133111EB


def key(seed: int, index: int, position: int) -> int:
    """What a row's noise is made from, as a signed 64-bit integer.

    ``index`` tells the answers to one prompt apart; ``position`` is where the token will stand.
    """
    root = _mix(seed & _ALL)
    if index:
        # The complement, because no position has it: answers share no key with other positions.
        root = _mix(root ^ (_ALL - index))
    return _signed(_mix(_mix(root ^ position)))


def gumbel(keys: Tensor, token_ids: Tensor) -> Tensor:
    """Standard Gumbel noise, float64 [rows, tokens].

    Args:
        keys: int64 [rows], of :func:`key`.
        token_ids: int64 [tokens], or [rows, tokens] where rows have candidates of their own.
    """
    bits = _logical_shift(mixed(keys[:, None] ^ token_ids), 12)
    # 52 bits and a half: never 0 and never 1, so both logarithms are finite.
    uniform = bits.to(torch.float64).add_(0.5).mul_(2.0**-52)
    return uniform.log_().neg_().log_().neg_()


def mixed(words: Tensor) -> Tensor:
    """One step of splitmix64 on int64 ``words``, in place: every bit depends on every bit given."""
    words.add_(_signed(_GOLDEN))
    words.bitwise_xor_(_logical_shift(words, 30)).mul_(_signed(_FIRST))
    words.bitwise_xor_(_logical_shift(words, 27)).mul_(_signed(_SECOND))
    return words.bitwise_xor_(_logical_shift(words, 31))


def _logical_shift(words: Tensor, count: int) -> Tensor:
    # A shift of signed integers draws the sign along; the mask takes it away again.
    return torch.bitwise_right_shift(words, count).bitwise_and_((1 << (64 - count)) - 1)


def _mix(word: int) -> int:
    """:func:`mixed` for one unsigned word."""
    word = (word + _GOLDEN) & _ALL
    word = ((word ^ (word >> 30)) * _FIRST) & _ALL
    word = ((word ^ (word >> 27)) * _SECOND) & _ALL
    return word ^ (word >> 31)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word
