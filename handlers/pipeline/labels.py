"""Says what a classifier's numbers mean: labels with scores, the best first.

The scores are what transformers' own pipeline makes of the same numbers. Classes of which exactly
one holds share a probability of 1 (softmax); labels that hold independently of one another, and a
single label, have a probability each (sigmoid); a regression's numbers stay as they are.

It knows neither the model nor where the numbers come from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Numbers = Sequence[float]


@dataclass(frozen=True, slots=True)
class Labels:
    """The classes of one model."""

    #: Each number's label, in the order of the numbers.
    names: tuple[str, ...]
    #: "single_label_classification", "multi_label_classification", "regression", or None: not
    #: said, so by the number of labels.
    problem_type: str | None = None

    @classmethod
    def of(cls, id2label: Mapping[int, str], problem_type: str | None) -> Labels:
        """From a model's configuration."""
        return cls(tuple(id2label[index] for index in range(len(id2label))), problem_type)

    def sort(self, numbers: Numbers) -> tuple[list[str], list[float]]:
        """All labels by falling score, and the scores; labels of equal score keep their order."""
        scores = self._score(numbers)
        order = sorted(range(len(scores)), key=lambda index: -scores[index])
        return [self.names[index] for index in order], [scores[index] for index in order]

    @property
    def _score(self) -> Callable[[Numbers], list[float]]:
        if self.problem_type == "regression":
            return list
        is_single = len(self.names) > 1 and self.problem_type != "multi_label_classification"
        return _softmax if is_single else _sigmoid


def _softmax(numbers: Numbers) -> list[float]:
    # Taking the largest away first keeps exp within its range.
    weights = [math.exp(number - max(numbers)) for number in numbers]
    return [weight / sum(weights) for weight in weights]


def _sigmoid(numbers: Numbers) -> list[float]:
    return [(1 + math.tanh(number / 2)) / 2 for number in numbers]
