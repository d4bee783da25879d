"""Draws the next token of each row, on the last stage.

The draw is ``argmax(logit / temperature + noise)`` over the tokens that top-k and top-p leave,
with Gumbel noise: that is a draw from the softmax. The noise is no generator's next number but a
hash of (seed, position, token id). So a token depends on its request and its place only: the same
alone, in a batch, on another machine and after a resume, and there is no state to carry. As noise
belongs to a token and not to a rank among candidates, logits that differ in their last bits
reorder nothing.

Each row is drawn on its own, because sums over differently padded batches differ in those bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from handlers.pipeline.step import Row, Sampling

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)


def draw(logits: Tensor, rows: Sequence[Row]) -> list[int]:
    """The token after each row; ``logits`` is [rows, vocabulary]."""
    greedy: list[int] = logits.argmax(dim=-1).tolist()
    return [
        token_id
        if row.num_tokens == 0 or row.sampling.temperature == 0
        else _draw_row(logits[index], row.sampling, row.start + row.num_tokens)
        for index, (row, token_id) in enumerate(zip(rows, greedy, strict=True))
    ]


def _draw_row(logits: Tensor, how: Sampling, position: int) -> int:
    """``position``: where the drawn token will stand in its sequence."""
    scaled = logits.to("cpu", torch.float64) / how.temperature
    token_ids = torch.arange(len(scaled))
    if 0 < how.top_k < len(scaled):
        scaled, token_ids = torch.topk(scaled, how.top_k)
    if how.top_p < 1.0:
        scaled, token_ids = _nucleus(scaled, token_ids, how.top_p)
    noise = torch.from_numpy(gumbel(how.seed, position, token_ids.numpy()))
    return int(token_ids[(scaled + noise).argmax()])


def _nucleus(scaled: Tensor, token_ids: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The fewest most likely tokens whose probabilities reach ``top_p``; one at least."""
    scaled, order = torch.sort(scaled, descending=True, stable=True)
    likelihood = scaled.softmax(dim=-1)
    before = likelihood.cumsum(dim=-1) - likelihood
    count = max(1, int((before < top_p).sum()))
    return scaled[:count], token_ids[order[:count]]


def gumbel(seed: int, position: int, token_ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Standard Gumbel noise for tokens at a position, the same wherever it is computed."""
    with np.errstate(over="ignore"):
        key = _mix(_mix(np.asarray([seed], np.uint64)) ^ np.uint64(position))
        bits = _mix(_mix(key) ^ token_ids.astype(np.uint64))
    # 52 bits and a half: never 0 and never 1, so both logarithms are finite.
    uniform = ((bits >> np.uint64(12)).astype(np.float64) + 0.5) / float(1 << 52)
    noise: NDArray[np.float64] = -np.log(-np.log(uniform))
    return noise


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One step of the splitmix64 generator: every bit of the result depends on every bit given."""
    words = words + _GOLDEN
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = words ^ (words >> np.uint64(31))
    return mixed
