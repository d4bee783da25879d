"""What a request adds to single tokens' logits: penalties for what was said, and its bias.

- repetition (Keskar et al., "CTRL", 2019, as the transformers library has it): logits of tokens
  in prompt or answer are divided by the penalty, or multiplied where they are below 0;
- presence and frequency (OpenAI's): taken from the logits of tokens in the answer, once, and
  once for each occurrence;
- logit bias: added as it is.

A sequence keeps the few tokens concerned, not a vocabulary of zeros. It is a function of the
sampling parameters, the prompt and the answer so far.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from handlers.pipeline.step import Open, Sampling


class Adjustments:
    """The tokens of one sequence whose logits change, and how."""

    def __init__(self, opened: Open) -> None:
        self._how = opened.sampling
        self._places: dict[int, int] = {}
        self._capacity = 64
        self._ids = np.zeros(self._capacity, np.int64)
        self._factors = np.ones(self._capacity, np.float32)
        self._counts = np.zeros(self._capacity, np.int64)
        self._biases = np.zeros(self._capacity, np.float64)
        for token_id, bias in self._how.logit_bias:
            place = self._place(token_id)
            self._biases[place] = bias
        if self._how.repetition_penalty != 1.0:
            self._repeat(opened.prompt_token_ids)
        for token_id in opened.generated:
            self.add(token_id)

    def __len__(self) -> int:
        return len(self._places)

    def __repr__(self) -> str:
        return f"<Adjustments tokens={len(self)}>"

    def add(self, token_id: int) -> None:
        """The answer goes on with a token."""
        if self._how.repetition_penalty != 1.0:
            self._repeat((token_id,))
        if self._how.presence_penalty or self._how.frequency_penalty:
            place = self._place(token_id)
            self._counts[place] += 1

    def values(self) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
        """Token ids (int64), what divides their logits, what is added then (float32)."""
        size = len(self)
        counts = self._counts[:size]
        shifts = self._biases[:size] - counts * self._how.frequency_penalty
        shifts -= (counts > 0) * self._how.presence_penalty
        return self._ids[:size], self._factors[:size], shifts.astype(np.float32)

    def _repeat(self, token_ids: Iterable[int]) -> None:
        for token_id in token_ids:
            place = self._place(token_id)
            self._factors[place] = self._how.repetition_penalty

    def _place(self, token_id: int) -> int:
        """Where the token stands in the arrays, which may be new ones afterwards."""
        place = self._places.setdefault(token_id, len(self._places))
        if place == self._capacity:
            self._grow()
        self._ids[place] = token_id
        return place

    def _grow(self) -> None:
        new = self._capacity
        self._capacity *= 2
        self._ids = np.append(self._ids, np.zeros(new, np.int64))
        self._factors = np.append(self._factors, np.ones(new, np.float32))
        self._counts = np.append(self._counts, np.zeros(new, np.int64))
        self._biases = np.append(self._biases, np.zeros(new, np.float64))


def needed(how: Sampling) -> bool:
    """Whether any token's logit may change."""
    penalties = (how.presence_penalty, how.frequency_penalty, how.repetition_penalty - 1.0)
    return any(penalties) or bool(how.logit_bias)


def apply(logits: Tensor, rows: Sequence[int], adjustments: Sequence[Adjustments]) -> None:
    """Change ``logits``, float32 [rows, vocabulary], in place: row ``rows[i]`` by the i-th."""
    width = max(map(len, adjustments), default=0)
    if width == 0:
        return
    ids = np.zeros((len(rows), width), np.int64)
    factors = np.ones((len(rows), width), np.float32)
    shifts = np.zeros((len(rows), width), np.float32)
    for target, each in enumerate(adjustments):
        size = len(each)
        if size == 0:
            continue
        # What is left over repeats the first token with the same change, which changes nothing.
        padded = np.arange(width)
        padded[size:] = 0
        own_ids, own_factors, own_shifts = each.values()
        ids[target], factors[target] = own_ids[padded], own_factors[padded]
        shifts[target] = own_shifts[padded]
    device = logits.device
    where = torch.tensor(rows, device=device)[:, None], torch.from_numpy(ids).to(device)
    factor = torch.from_numpy(factors).to(device)
    found = logits[where]
    found = torch.where(found < 0, found * factor, found / factor)
    logits[where] = found + torch.from_numpy(shifts).to(device)
