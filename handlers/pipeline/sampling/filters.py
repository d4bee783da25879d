"""Decides which tokens a draw chooses between, and draws.

Every filter comes down to a *threshold*: tokens whose logit is below it are left out.

- top-k: the k-th highest logit.
- top-p (Holtzman et al., "The curious case of neural text degeneration", 2020): the lowest logit
  among the fewest likeliest tokens, of those top-k leaves, whose probabilities reach p.
- min-p (Nguyen et al., "Turning up the heat", 2024): where a token is p times as likely as the
  likeliest one.

Tokens that tie with the last one kept are kept as well: which of them a sort puts first is no
property of the request.

On a device, where shapes that depend on values would need a wait, all rows are cut and drawn over
the whole vocabulary. On the CPU sorting that is what costs: there, rows with filters look at the
highest logits only, and at more of them when the threshold lies further down. The thresholds are
the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from handlers.pipeline.sampling import noise, weights
from handlers.pipeline.step import Sampling

#: How many of the highest logits are looked at on the CPU before all of them are.
_HEADS: Final = (1024, 16384)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows to draw, all with a temperature."""

    #: float32 [rows, vocabulary].
    logits: Tensor
    #: float64 [rows]: each row's highest logit.
    peaks: Tensor
    #: int64 [rows], of :func:`noise.key`.
    keys: Tensor
    #: float64 [rows, 4]: temperature, top-k (the vocabulary's size keeps all), top-p, min-p.
    numbers: Tensor

    def rows(self, chosen: Tensor) -> Batch:
        """Some of the rows; ``chosen`` is int64 or bool."""
        parts = (self.logits, self.peaks, self.keys, self.numbers)
        return Batch(*(part[chosen] for part in parts))

    @property
    def temperatures(self) -> Tensor:
        return self.numbers[:, 0]

    @property
    def vocabulary_size(self) -> int:
        return self.logits.shape[-1]

    @property
    def floors(self) -> Tensor:
        """The thresholds of min-p, float64 [rows]; minus infinity where there is none."""
        return self.peaks + self.temperatures * self.numbers[:, 3].log()

    def scores(self, logits: Tensor, token_ids: Tensor, thresholds: Tensor) -> Tensor:
        """Scaled logits and noise of some tokens; minus infinity below the threshold."""
        exact = logits.to(torch.float64)
        is_out = exact < thresholds[:, None]
        scores = exact.sub_(self.peaks[:, None]).div_(self.temperatures[:, None])
        return scores.add_(noise.gumbel(self.keys, token_ids)).masked_fill_(is_out, -math.inf)


def has_filter(how: Sampling, vocabulary_size: int) -> bool:
    """Whether any token may be left out."""
    return 0 < how.top_k < vocabulary_size or how.top_p < 1.0 or how.min_p > 0.0


def numbers(how: Sampling, vocabulary_size: int) -> tuple[float, float, float, float]:
    """A row of :attr:`Batch.numbers`."""
    top_k = how.top_k if 0 < how.top_k < vocabulary_size else vocabulary_size
    return how.temperature, top_k, how.top_p, how.min_p


def draw(batch: Batch, hows: Sequence[Sampling]) -> Tensor:
    """The token of each row, int64 [rows]; a row whose peak is not finite gets any."""
    is_filtered = [has_filter(how, batch.vocabulary_size) for how in hows]
    if not any(is_filtered):
        return draw_from_all(batch, torch.full_like(batch.peaks, -math.inf))
    if batch.logits.device.type != "cpu":
        return draw_from_all(batch, _thresholds_of_all(batch, hows))
    filtered = torch.tensor(is_filtered)
    tokens = torch.empty(len(hows), dtype=torch.int64)
    tokens[filtered] = draw_from_heads(batch.rows(filtered))
    if not all(is_filtered):
        plain = batch.rows(~filtered)
        tokens[~filtered] = draw_from_all(plain, torch.full_like(plain.peaks, -math.inf))
    return tokens


def draw_from_all(batch: Batch, thresholds: Tensor) -> Tensor:
    """The token of each row, looking at the whole vocabulary."""
    best = torch.full_like(batch.peaks, -math.inf)
    tokens = torch.zeros_like(batch.keys)
    for start, end in weights.blocks(batch.logits):
        ids = torch.arange(start, end, device=batch.logits.device)
        values, places = batch.scores(batch.logits[:, start:end], ids, thresholds).max(dim=-1)
        tokens = torch.where(values > best, places + start, tokens)
        best = torch.maximum(values, best)
    return tokens


def draw_from_heads(batch: Batch) -> Tensor:
    """The token of each row, looking no further down than the thresholds; for the CPU."""
    tokens = torch.zeros_like(batch.keys)
    pending = torch.arange(len(tokens))
    most = int(batch.numbers[:, 1].where(batch.numbers[:, 1] < batch.vocabulary_size, 0).amax())
    for size in (*_HEADS, batch.vocabulary_size):
        if not len(pending) or most >= size < batch.vocabulary_size:
            continue
        rows = batch.rows(pending)
        head = rows.logits.topk(min(size, batch.vocabulary_size), dim=-1)
        thresholds, is_known = _thresholds(rows, head.values)
        tokens[pending[is_known]] = _draw_from(
            rows.rows(is_known),
            head.values[is_known],
            head.indices[is_known],
            thresholds[is_known],
        )
        pending = pending[~is_known]
    return tokens


def _draw_from(batch: Batch, logits: Tensor, token_ids: Tensor, thresholds: Tensor) -> Tensor:
    """The token of each row out of candidates, which fall from left to right."""
    if not len(logits):
        return batch.keys
    width = max(1, int((logits >= thresholds[:, None]).sum(dim=-1).amax()))
    token_ids = token_ids[:, :width]
    best = batch.scores(logits[:, :width], token_ids, thresholds).argmax(dim=-1, keepdim=True)
    return token_ids.gather(1, best)[:, 0]


def _thresholds_of_all(batch: Batch, hows: Sequence[Sampling]) -> Tensor:
    """The thresholds on a device: nothing is waited for, so as much is sorted as may be needed."""
    if all(how.top_p >= 1.0 for how in hows):
        most = max(how.top_k for how in hows)
        size = most if 0 < most < batch.vocabulary_size else 1
        return _thresholds(batch, batch.logits.topk(size, dim=-1).values)[0]
    values = batch.logits.sort(dim=-1, descending=True).values
    return _thresholds(batch, values)[0]


def _thresholds(batch: Batch, head: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's threshold, float64 [rows], and whether it is one: the head may be too short.

    ``head`` is [rows, size], the highest logits from the highest down.
    """
    size, vocabulary_size = head.shape[-1], batch.vocabulary_size
    last = head[:, -1]
    top_k = batch.numbers[:, 1].to(torch.int64)
    cuts = top_k < vocabulary_size
    kth = head.gather(1, (top_k - 1).clamp(max=size - 1)[:, None])[:, 0]
    kth = kth.where(cuts, -math.inf)
    nucleus = _nucleus(batch, head, kth, cuts)
    thresholds = torch.stack([kth.to(torch.float64), nucleus, batch.floors]).amax(dim=0)
    # Tokens that tie with the last of the head may go on below it.
    ties = (cuts & (kth <= last)) | (thresholds <= last)
    is_whole = last == -math.inf if size < vocabulary_size else torch.ones_like(ties)
    return thresholds, is_whole | ~ties


def _nucleus(batch: Batch, head: Tensor, kth: Tensor, cuts: Tensor) -> Tensor:
    """The thresholds of top-p, float64 [rows]; minus infinity where there is none."""
    top_p = batch.numbers[:, 2]
    if batch.logits.device.type == "cpu" and bool((top_p >= 1.0).all()):
        return torch.full_like(batch.peaks, -math.inf)
    places = weights.precision(batch.vocabulary_size)
    weight = weights.weigh(head, batch.peaks, batch.temperatures, places)
    weight.masked_fill_(head < kth[:, None], 0)
    sums = weight.cumsum(dim=-1)
    whole = _whole(batch, places, cuts, sums[:, -1])
    is_in = (sums - weight).to(torch.float64) < (top_p * whole.to(torch.float64))[:, None]
    count = is_in.sum(dim=-1).clamp(min=1)
    lowest = head.gather(1, (count - 1)[:, None])[:, 0].to(torch.float64)
    return lowest.where(top_p < 1.0, -math.inf)


def _whole(batch: Batch, places: int, cuts: Tensor, of_head: Tensor) -> Tensor:
    """What top-p is a share of: the weight of all tokens, or of those that top-k leaves."""
    if batch.logits.device.type == "cpu" and bool(cuts.all()):
        return of_head
    of_all = weights.total(batch.logits, batch.peaks, batch.temperatures, places)
    return of_head.where(cuts, of_all)
