"""Decides which decoder layers each stage runs.

A pipeline is as fast as its slowest stage, so the cut makes the largest stage as small as can be.
A step reads every weight once, whatever it computes; time is therefore counted in weights read.
The output head is read in full by the last stage and weighs as much as several layers of a small
model. The token embedding is only looked up, so it costs the first stage no time, but it is held
in memory: among the cuts of equal time the one with the smallest largest stage in memory wins.

An explicit list of layer counts is taken as it is, if it adds up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import inf
from typing import Any

#: The layers of one stage: from (included) to (excluded).
Cut = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Weights:
    """Numbers of weights of a decoder's parts."""

    #: One number for each decoder layer.
    layers: tuple[int, ...]
    #: The token embedding.
    embedding: int
    #: The output head; as large as the embedding when they are tied.
    head: int

    @classmethod
    def estimate(cls, config: Any) -> Weights:
        """From the attributes of a decoder's configuration, counting matrices only."""
        hidden: int = config.hidden_size
        inner: int = getattr(config, "intermediate_size", None) or 4 * hidden
        heads: int = config.num_attention_heads
        key_heads: int = getattr(config, "num_key_value_heads", None) or heads
        head_size: int = getattr(config, "head_dim", None) or hidden // heads
        experts: int = getattr(config, "num_local_experts", None) or 1
        attention = 2 * hidden * head_size * (heads + key_heads)
        layer = attention + 3 * hidden * inner * experts
        table: int = config.vocab_size * hidden
        return cls((layer,) * config.num_hidden_layers, table, table)


def plan(weights: Weights, num_stages: int, explicit: Sequence[int] | None = None) -> list[Cut]:
    """The layers of each stage, in order.

    Raises:
        ValueError: there are more stages than layers, or ``explicit`` does not add up.
    """
    num_layers = len(weights.layers)
    if explicit is not None:
        return _explicit(explicit, num_stages, num_layers)
    if not 1 <= num_stages <= num_layers:
        raise ValueError(
            f"{num_layers} decoder layers cannot make {num_stages} stages; "
            f"allowed are 1 to {num_layers}"
        )
    before = [0, *accumulate(weights.layers)]

    def time(start: int, end: int) -> float:
        head = weights.head if end == num_layers else 0
        return before[end] - before[start] + head

    def memory(start: int, end: int) -> float:
        return time(start, end) + (weights.embedding if start == 0 else 0)

    slowest = max(time(*cut) for cut in _best(num_layers, num_stages, time))
    return _best(
        num_layers, num_stages, lambda *cut: memory(*cut) if time(*cut) <= slowest else inf
    )


def _explicit(counts: Sequence[int], num_stages: int, num_layers: int) -> list[Cut]:
    if len(counts) != num_stages or sum(counts) != num_layers or min(counts) < 1:
        raise ValueError(
            f"partition {list(counts)} does not fit: it must name {num_stages} stages of at "
            f"least one layer each, {num_layers} layers in all"
        )
    return list(pairwise([0, *accumulate(counts)]))


def _best(num_layers: int, num_stages: int, cost: Callable[[int, int], float]) -> list[Cut]:
    """The cut into contiguous stages whose costliest stage is cheapest."""
    # worst[k][end]: the cost of the costliest stage when k stages hold the layers before `end`.
    worst = [[inf] * (num_layers + 1) for _ in range(num_stages + 1)]
    start_of = [[0] * (num_layers + 1) for _ in range(num_stages + 1)]
    worst[0][0] = 0.0
    for stage in range(1, num_stages + 1):
        for end in range(stage, num_layers + 1):
            for start in range(stage - 1, end):
                candidate = max(worst[stage - 1][start], cost(start, end))
                if candidate < worst[stage][end]:
                    worst[stage][end], start_of[stage][end] = candidate, start
    cuts: list[Cut] = []
    end = num_layers
    for stage in range(num_stages, 0, -1):
        cuts.append((start_of[stage][end], end))
        end = start_of[stage][end]
    return cuts[::-1]
