"""Log probabilities of the model's own distribution: before penalties, temperature and filters.

They are natural logarithms of the softmax of the logits as float32. Of tokens that are equally
likely those with lower ids come first, on every device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from handlers.pipeline.sampling import weights

_LOW_HALF = (1 << 32) - 1


def of_tokens(logits: Tensor, token_ids: Tensor, count: int) -> Tensor:
    """What each row's token and its likeliest ones are worth.

    Args:
        logits: float32 [rows, vocabulary].
        token_ids: int64 [rows], what was drawn.
        count: how many of the likeliest; no more than there are tokens.

    Returns:
        float64 [rows, 1 + 2 * count]: the drawn token's, then the likeliest tokens' ids, then
        theirs.
    """
    peaks = logits.amax(dim=-1).to(torch.float64)
    places = weights.precision(logits.shape[-1])
    sums = weights.total(logits, peaks, torch.ones_like(peaks), places)
    norm = peaks + sums.to(torch.float64).log() - places * math.log(2)
    top = likeliest(logits, count)
    wanted = torch.cat([token_ids[:, None], top], dim=1)
    found = logits.gather(1, wanted).to(torch.float64) - norm[:, None]
    return torch.cat([found[:, :1], top.to(torch.float64), found[:, 1:]], dim=1)


def likeliest(logits: Tensor, count: int) -> Tensor:
    """The ids of the ``count`` likeliest tokens of each row, int64 [rows, count]."""
    if count == 0:
        return torch.empty(len(logits), 0, dtype=torch.int64, device=logits.device)
    # Keys that no two tokens share: the logit's bits, made to sort as integers, above the id.
    bits = (logits + 0.0).view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    ids = torch.arange(logits.shape[-1], device=logits.device)
    keys = (ordered.to(torch.int64) << 32) | (_LOW_HALF - ids)
    top: Tensor = _LOW_HALF - (keys.topk(count, dim=-1).values & _LOW_HALF)
    return top
