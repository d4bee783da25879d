"""Log probabilities of the model's own distribution: before penalties, temperature and filters.

They are natural logarithms of the softmax of the logits as float32. Of tokens that are equally
likely those with lower ids come first, on every device. A token that cannot come, whose logarithm
would be infinite and no JSON number, has ``LEAST``.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from handlers.pipeline.sampling import ranking, weights

#: No token is told to be less likely.
LEAST: Final = -9999.0

_LOW_HALF: Final = (1 << 32) - 1
#: How many more of the highest logits are looked at on the CPU than are asked for.
_MORE: Final = 64


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
    sums = weights.total(logits, peaks, torch.ones_like(peaks))
    places = weights.precision(logits.shape[-1])
    norm = peaks + sums.to(torch.float64).log() - places * math.log(2)
    top = likeliest(logits, count)
    wanted = torch.cat([token_ids[:, None], top], dim=1)
    found = logits.gather(1, wanted).to(torch.float64) - norm[:, None]
    found = found.clamp_(min=LEAST)
    return torch.cat([found[:, :1], top.to(torch.float64), found[:, 1:]], dim=1)


def likeliest(logits: Tensor, count: int) -> Tensor:
    """The ids of the ``count`` likeliest tokens of each row, int64 [rows, count]."""
    num_rows, vocabulary_size = logits.shape
    if count == 0:
        return torch.empty(num_rows, 0, dtype=torch.int64, device=logits.device)
    if logits.device.type == "cpu":
        # Sorting floats is several times faster, and settles it unless ties reach beyond the head.
        head = logits.topk(min(count + _MORE, vocabulary_size), dim=-1)
        is_settled = head.values[:, count - 1] > head.values[:, -1]
        if head.indices.shape[-1] == vocabulary_size or bool(is_settled.all()):
            return _first(head.values, head.indices, count)
    return _first(logits, torch.arange(vocabulary_size, device=logits.device), count)


def _first(logits: Tensor, token_ids: Tensor, count: int) -> Tensor:
    # Keys that no two tokens share: what sorts as the logit does, above the id.
    keys = (ranking.sortable(logits) << 32) | (_LOW_HALF - token_ids)
    return _LOW_HALF - (keys.topk(count, dim=-1).values & _LOW_HALF)
