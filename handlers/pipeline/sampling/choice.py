"""Draws from rows of logits: ``argmax(logit / temperature + noise)`` at or above the thresholds.

On a device, where shapes that depend on values would need a wait, all rows are drawn over the
whole vocabulary. On the CPU the noise is what costs: there, rows with filters look at their highest
logits first, and only at the others when the threshold lies further down. The thresholds, the
noise and so the tokens are the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from handlers.pipeline.sampling import filters, weights
from handlers.pipeline.sampling.filters import Shapes

#: How many of the highest logits are looked at on the CPU before all of them are.
HEAD: Final = 1024
#: How many more than top-k are looked at: half-width logits often tie.
MARGIN: Final = 64


def draw(logits: Tensor, shapes: Shapes) -> Tensor:
    """The token of each row, int64 [rows]; a row whose peak is not finite gets any.

    ``logits`` is float32 [rows, vocabulary] and is not changed.
    """
    is_filtered = shapes.is_filtered
    if not any(is_filtered):
        return draw_from_all(logits, shapes, torch.full_like(shapes.peaks, -math.inf))
    if logits.device.type != "cpu":
        return draw_from_all(logits, shapes, filters.from_all(logits, shapes))
    tokens = torch.empty_like(shapes.keys)
    for wanted, find in ((True, _from_heads), (False, draw)):
        chosen = [row for row, is_in in enumerate(is_filtered) if is_in == wanted]
        if chosen:
            tokens[chosen] = find(rows(logits, chosen), shapes.rows(chosen))
    return tokens


def rows(table: Tensor, chosen: Sequence[int]) -> Tensor:
    """Some rows of a table, in rising order; the table itself when they are all."""
    if len(chosen) == len(table):
        return table
    return table[torch.tensor(chosen, device=table.device)]


def draw_from_all(logits: Tensor, shapes: Shapes, thresholds: Tensor) -> Tensor:
    """The token of each row, out of the whole vocabulary."""
    best = torch.full_like(shapes.peaks, -math.inf)
    tokens = torch.zeros_like(shapes.keys)
    for start, end in weights.blocks(logits):
        ids = torch.arange(start, end, device=logits.device)
        values, places = shapes.scores(logits[:, start:end], ids, thresholds).max(dim=-1)
        tokens = torch.where(values > best, places + start, tokens)
        best = torch.maximum(values, best)
    return tokens


def _from_heads(logits: Tensor, shapes: Shapes) -> Tensor:
    """The token of each row, looking no further down than has to be; for the CPU."""
    size = shapes.most + MARGIN if shapes.are_cut else max(HEAD, shapes.most + MARGIN)
    head = logits.topk(min(size, shapes.vocabulary_size), dim=-1)
    thresholds, is_known = filters.from_head(logits, shapes, head.values)
    tokens = _from_head(shapes, head.values, head.indices, thresholds)
    if not all(is_known.tolist()):
        others = [row for row, is_done in enumerate(is_known.tolist()) if not is_done]
        logits, shapes = rows(logits, others), shapes.rows(others)
        tokens[others] = draw_from_all(logits, shapes, filters.from_all(logits, shapes))
    return tokens


def _from_head(shapes: Shapes, head: Tensor, token_ids: Tensor, thresholds: Tensor) -> Tensor:
    """The token of each row out of its highest ones."""
    width = max(1, int((head >= thresholds[:, None]).sum(dim=-1).amax()))
    token_ids = token_ids[:, :width]
    best = shapes.scores(head[:, :width], token_ids, thresholds).argmax(dim=-1, keepdim=True)
    return token_ids.gather(1, best)[:, 0]
