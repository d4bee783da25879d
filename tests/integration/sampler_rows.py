"""Drives a Sampler as a last stage does, one token of each sequence after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from handlers.pipeline.sampling import Sampler
from handlers.pipeline.step import Draw, Open, Row, Sampling


def draws(
    logits: Tensor,
    hows: Sequence[Sampling],
    start: int = 0,
    prompt: Sequence[int] = (),
    generated: Sequence[int] = (),
) -> list[Draw]:
    """What is drawn from rows of logits, each the first one of a sequence of its own."""
    sampler = Sampler(logits.shape[-1], logits.device)
    for slot, how in enumerate(hows):
        sampler.open(Open(slot, how, tuple(prompt), tuple(generated)))
    rows = [Row(slot, start, 1, is_drawn=True) for slot in range(len(hows))]
    found = sampler.draw(logits, rows)
    return [draw for draw in found if draw is not None]


def tokens(logits: Tensor, hows: Sequence[Sampling], start: int = 0) -> list[int]:
    return [draw.token_id for draw in draws(logits, hows, start)]


def frequencies(logits: Tensor, how: Sampling, count: int = 4000) -> Tensor:
    """How often each token of one row is drawn at ``count`` positions."""
    sampler = Sampler(len(logits), "cpu")
    sampler.open(Open(0, how, ()))
    rows = [Row(0, position, 1, is_drawn=True) for position in range(count)]
    found = [draw.token_id for draw in sampler.draw(logits.expand(count, -1), rows) if draw]
    return torch.bincount(torch.tensor(found), minlength=len(logits))


def chi_square(counts: Tensor, likelihoods: Tensor) -> float:
    """How far counts are from what is expected, in units of what chance exceeds once in 1000."""
    possible = likelihoods > 0
    assert not counts[~possible].any()
    wanted = likelihoods[possible].double() * counts.sum()
    statistic = float(((counts[possible] - wanted) ** 2 / wanted).sum())
    freedom = int(possible.sum()) - 1
    # Wilson and Hilferty, "The distribution of chi-square", 1931; 3.09 standard deviations.
    limit = freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3
    return statistic / limit


def answer(
    how: Sampling,
    source: Callable[[int], Tensor],
    count: int,
    generated: Sequence[int] = (),
    prompt: Sequence[int] = (1, 5, 9),
    tokenizer: Any = None,
    end: int | None = None,
) -> list[Draw]:
    """The draws up to ``count`` tokens of one sequence that goes on after ``generated``.

    ``source`` gives the logits that decide about a position. It stops before that when ``end``
    was drawn twice.
    """
    vocabulary_size = len(source(0))
    sampler = Sampler(vocabulary_size, "cpu", None if tokenizer is None else lambda: tokenizer)
    sampler.open(Open(0, how, tuple(prompt), tuple(generated)))
    found = []
    for position in range(len(prompt) + len(generated), len(prompt) + count):
        row = Row(0, position - 1, 1, is_drawn=True)
        found += sampler.draw(source(position)[None], [row])
        if end is not None and [draw.token_id for draw in found[-2:] if draw] == [end] * 2:
            break
    return [draw for draw in found if draw is not None]


def random_logits(
    vocabulary_size: int, seed: int = 0, spread: float = 2.0
) -> Callable[[int], Tensor]:
    """Logits for each position, as from a model that knows nothing."""

    def source(position: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 100_003 + position)
        return torch.randn(vocabulary_size, generator=generator) * spread

    return source
