"""Decides which tokens a draw chooses between: those at or above a row's *threshold*.

- top-k: the k-th highest logit.
- top-p (Holtzman et al., "The curious case of neural text degeneration", 2020): the lowest logit
  among the fewest likeliest tokens, of those top-k leaves, whose probabilities reach p.
- min-p (Nguyen et al., "Turning up the heat", 2024): where a token is p times as likely as the
  likeliest one.

Tokens that tie with the last one kept are kept as well: which of them a sort puts first is no
property of the request. Nothing in here waits for a device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from handlers.pipeline.sampling import noise, ranking, weights
from handlers.pipeline.step import Sampling


@dataclass(frozen=True, slots=True)
class Shapes:
    """What turns the logits of rows into draws; all rows have a temperature."""

    hows: tuple[Sampling, ...]
    vocabulary_size: int
    #: float64 [rows]: each row's highest logit.
    peaks: Tensor
    #: int64 [rows], of :func:`noise.key`.
    keys: Tensor
    #: float64 [rows, 4]: temperature, top-k (the vocabulary's size keeps all), top-p, min-p.
    numbers: Tensor

    @classmethod
    def of(
        cls, hows: Sequence[Sampling], vocabulary_size: int, peaks: Tensor, keys: Sequence[int]
    ) -> Shapes:
        """The rows' parameters, on the device of ``peaks``."""
        numbers = [
            (how.temperature, _top_k(how, vocabulary_size), how.top_p, how.min_p) for how in hows
        ]
        return cls(
            tuple(hows),
            vocabulary_size,
            peaks,
            torch.tensor(keys, dtype=torch.int64, device=peaks.device),
            torch.tensor(numbers, dtype=torch.float64, device=peaks.device),
        )

    def __len__(self) -> int:
        return len(self.hows)

    def rows(self, chosen: Sequence[int]) -> Shapes:
        """Some of the rows."""
        where = torch.tensor(chosen, device=self.peaks.device)
        hows = tuple(self.hows[row] for row in chosen)
        parts = (self.peaks[where], self.keys[where], self.numbers[where])
        return Shapes(hows, self.vocabulary_size, *parts)

    def span(self, start: int, end: int) -> Shapes:
        """Rows that follow each other."""
        parts = (each[start:end] for each in (self.peaks, self.keys, self.numbers))
        return Shapes(self.hows[start:end], self.vocabulary_size, *parts)

    @property
    def temperatures(self) -> Tensor:
        return self.numbers[:, 0]

    @property
    def most(self) -> int:
        """The longest top-k of the rows that have one; 0 when none has."""
        counts = (_top_k(how, self.vocabulary_size) for how in self.hows)
        return max((count for count in counts if count < self.vocabulary_size), default=0)

    @property
    def are_cut(self) -> bool:
        """Whether every row has a top-k."""
        return all(_top_k(how, self.vocabulary_size) < self.vocabulary_size for how in self.hows)

    @property
    def is_filtered(self) -> list[bool]:
        """For each row, whether tokens may be left out."""
        whole = self.vocabulary_size
        return [
            _top_k(how, whole) < whole or how.top_p < 1.0 or how.min_p > 0.0 for how in self.hows
        ]

    def scores(self, logits: Tensor, token_ids: Tensor, thresholds: Tensor) -> Tensor:
        """Scaled logits with noise, float64; minus infinity below the threshold.

        Args:
            logits: float32 [rows, tokens].
            token_ids: int64, which these are; [tokens], or [rows, tokens].
            thresholds: float64 [rows].
        """
        exact = logits.to(torch.float64)
        is_out = exact < thresholds[:, None]
        # Less the peak, so that no temperature is too low: the likeliest token is at 0.
        scores = (exact - self.peaks[:, None]).div_(self.temperatures[:, None])
        return scores.add_(noise.gumbel(self.keys, token_ids)).masked_fill_(is_out, -math.inf)


def from_all(logits: Tensor, shapes: Shapes) -> Tensor:
    """Each row's threshold, float64 [rows]; ``logits`` is float32 [rows, vocabulary]."""
    parts = [
        _from_all(logits[start:end], shapes.span(start, end))
        for start, end in weights.spans(logits)
    ]
    return torch.cat(parts)


def _from_all(logits: Tensor, shapes: Shapes) -> Tensor:
    top_k = shapes.numbers[:, 1].to(torch.int64)
    kth = _none(shapes)
    if shapes.most:
        found = ranking.reach(logits, torch.ones_like(logits, dtype=torch.int64), top_k)
        kth = found.where(top_k < shapes.vocabulary_size, -math.inf)
    nucleus = _none(shapes)
    if _has_top_p(shapes):
        weight = weights.weigh(logits, shapes.peaks, shapes.temperatures)
        weight.masked_fill_(logits < kth[:, None], 0)
        found = ranking.reach(logits, weight, _share(shapes, weight.sum(dim=-1)))
        nucleus = found.where(shapes.numbers[:, 2] < 1.0, -math.inf)
    return _highest(shapes, kth, nucleus)


def from_head(logits: Tensor, shapes: Shapes, head: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's threshold, float64 [rows], and whether it is known, bool [rows].

    ``head`` is float32 [rows, size]: the highest logits of each row from the highest down, all of
    them or more than ``shapes.most``. It may be too short for some rows' thresholds.
    """
    last = head[:, -1]
    top_k = shapes.numbers[:, 1].to(torch.int64)
    is_cut = top_k < shapes.vocabulary_size
    kth = head.gather(1, (top_k - 1).clamp(max=head.shape[-1] - 1)[:, None])[:, 0]
    kth = kth.where(is_cut, -math.inf)
    nucleus = _none(shapes)
    if _has_top_p(shapes):
        nucleus = _nucleus(logits, shapes, head, kth)
    thresholds = _highest(shapes, kth.to(torch.float64), nucleus)
    # Tokens that tie with the last of the head may go on below it.
    is_open = (is_cut & (kth <= last)) | (thresholds <= last)
    is_whole = (last == -math.inf) | (head.shape[-1] == logits.shape[-1])
    return thresholds, is_whole | ~is_open


def _nucleus(logits: Tensor, shapes: Shapes, head: Tensor, kth: Tensor) -> Tensor:
    weight = weights.weigh(head, shapes.peaks, shapes.temperatures, shapes.vocabulary_size)
    weight.masked_fill_(head < kth[:, None], 0)
    sums = weight.cumsum(dim=-1)
    whole = sums[:, -1]
    if not shapes.are_cut:
        of_all = weights.total(logits, shapes.peaks, shapes.temperatures)
        whole = whole.where(kth > -math.inf, of_all)
    place = (sums < _share(shapes, whole)[:, None]).sum(dim=-1).clamp(max=head.shape[-1] - 1)
    lowest = head.gather(1, place[:, None])[:, 0].to(torch.float64)
    return lowest.where(shapes.numbers[:, 2] < 1.0, -math.inf)


def _share(shapes: Shapes, whole: Tensor) -> Tensor:
    """The least whole weight that reaches top-p."""
    share = (shapes.numbers[:, 2] * whole.to(torch.float64)).ceil().to(torch.int64)
    return torch.minimum(share.clamp(min=1), whole)


def _highest(shapes: Shapes, kth: Tensor, nucleus: Tensor) -> Tensor:
    floors = shapes.peaks + shapes.temperatures * shapes.numbers[:, 3].log()
    return torch.stack([kth, nucleus, floors]).amax(dim=0)


def _none(shapes: Shapes) -> Tensor:
    return torch.full_like(shapes.peaks, -math.inf)


def _has_top_p(shapes: Shapes) -> bool:
    return any(how.top_p < 1.0 for how in shapes.hows)


def _top_k(how: Sampling, vocabulary_size: int) -> int:
    """How many tokens top-k keeps."""
    return how.top_k if 0 < how.top_k < vocabulary_size else vocabulary_size
