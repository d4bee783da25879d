"""What a stage is expected to take, learnt from what it took.

A decode step's time depends on its rows, and where stages share cores or memory on how many of
them are at work, so on the lanes; it is remembered as it was seen. A prefill step's time depends
on its tokens and on what they attend to, and steps are seldom alike; it is fitted. Both forget
slowly, take no single slow step at its word, and know nothing of what is decided from them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Observations of one shape that are kept.
_NUM_KEPT: Final = 15
#: An observation counts as at most this many times the estimate: a pause is no new speed.
_CLIP: Final = 4.0
#: How much of a step's time is taken to grow with its rows while only one number was seen.
_SHARE_OF_ROWS: Final = 0.5
#: What the last observation but one still counts, in a fit.
_MEMORY: Final = 0.95
#: A fit with one term more has to leave this much less unexplained.
_WORTH_A_TERM: Final = 0.8
#: A condition number from which terms are taken to have changed together always.
_SINGULAR: Final = 1e5
#: Prefill steps after which one that took far longer than expected is not believed.
_TRUSTED_AFTER: Final = 4
#: Terms of the fits that are tried: per step, per token, per token and position attended to.
_TERMS: Final = ((1,), (0, 1), (1, 2), (0, 1, 2))


class _Recent:
    """The median of the last few observations: neither a pause nor a first step moves it."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=_NUM_KEPT)
        self.median = 0.0

    def add(self, seconds: float) -> None:
        self._seconds.append(seconds)
        # The lower of two: the first step of a shape may have compiled something.
        self.median = sorted(self._seconds)[(len(self._seconds) - 1) // 2]


class RowTimes:
    """Decode steps of one stage."""

    def __init__(self) -> None:
        #: By lanes, then by rows.
        self._seen: dict[int, dict[int, _Recent]] = {}

    def observe(self, lanes: int, num_rows: int, seconds: float) -> None:
        """A step of so many rows took so long, with so many lanes."""
        by_rows = self._seen.setdefault(lanes, {})
        by_rows.setdefault(num_rows, _Recent()).add(seconds)

    def predict(self, lanes: int, num_rows: int) -> float | None:
        """Seconds for a step, from the nearest number of lanes seen; None: nothing was seen."""
        if not self._seen:
            return None
        nearest = min(self._seen, key=lambda seen: (abs(seen - lanes), -seen))
        return _read({rows: each.median for rows, each in self._seen[nearest].items()}, num_rows)


def _read(curve: Mapping[int, float], num_rows: int) -> float:
    """The curve at ``num_rows``: between two points the line, outside the line through all."""
    below = max((rows for rows in curve if rows <= num_rows), default=None)
    above = min((rows for rows in curve if rows >= num_rows), default=None)
    if below is not None and above is not None:
        share = (num_rows - below) / (above - below) if above > below else 0.0
        return curve[below] + share * (curve[above] - curve[below])
    nearest = above if below is None else below
    assert nearest is not None
    slope = _slope(curve)
    if slope is None:
        slope = _SHARE_OF_ROWS * curve[nearest] / nearest
    # No step is free, whatever the line says.
    return max(curve[nearest] + slope * (num_rows - nearest), 0.1 * curve[nearest])


def _slope(curve: Mapping[int, float]) -> float | None:
    if len(curve) < 2:
        return None
    mean_rows, mean_s = sum(curve) / len(curve), sum(curve.values()) / len(curve)
    together = sum((rows - mean_rows) * (seconds - mean_s) for rows, seconds in curve.items())
    return max(0.0, together / sum((rows - mean_rows) ** 2 for rows in curve))


class TokenTimes:
    """Prefill steps of one stage: least squares of relative errors, the newest counting most."""

    def __init__(self) -> None:
        self._matrix, self._vector = np.zeros((3, 3)), np.zeros(3)
        self._fitted: Floats | None = None
        self._count, self._total = 0, 0.0
        #: How far steps were from the fit, as a share of their time: the root of its mean square.
        self.spread = 0.0
        #: Tokens of the largest step seen.
        self.largest = 0

    def observe(self, num_tokens: int, window: int, seconds: float) -> None:
        """A step of so many tokens that attend to ``window`` positions took so long."""
        expected = self.predict(num_tokens, window)
        if expected is not None and self._count >= _TRUSTED_AFTER:
            seconds = min(seconds, _CLIP * expected)
        terms = _terms(num_tokens, window) / max(seconds, 1e-9)
        self._matrix = _MEMORY * self._matrix + np.outer(terms, terms)
        self._vector = _MEMORY * self._vector + terms
        self._total = _MEMORY * self._total + 1
        self._count, self.largest = self._count + 1, max(self.largest, num_tokens)
        self._fitted = None

    def predict(self, num_tokens: int, window: int) -> float | None:
        """Seconds for a step; None: nothing was seen."""
        if not self._count:
            return None
        if self._fitted is None:
            self._fitted = self._fit()
        return float(self._fitted @ _terms(num_tokens, window))

    def _fit(self) -> Floats:
        """The simplest weights, none below 0, that explain nearly as much as any."""
        best, unexplained = np.zeros(3), float("inf")
        for chosen in _TERMS:
            weights = self._solve(list(chosen))
            if weights is None or weights.min() < 0:
                continue
            squared = weights @ self._matrix @ weights - 2 * weights @ self._vector
            error = max(0.0, float(squared) + self._total)
            if error < _WORTH_A_TERM * unexplained:
                best, unexplained = weights, error
        self.spread = (unexplained / self._total) ** 0.5
        return best

    def _solve(self, chosen: list[int]) -> Floats | None:
        """Weights of the chosen terms, 0 for the others; None: what was seen cannot tell."""
        scale = np.sqrt(np.diag(self._matrix)[chosen])
        scaled = self._matrix[np.ix_(chosen, chosen)] / np.outer(scale, scale)
        if np.linalg.cond(scaled) > _SINGULAR:
            return None
        weights = np.zeros(3)
        weights[chosen] = np.linalg.solve(scaled, self._vector[chosen] / scale) / scale
        return weights


def _terms(num_tokens: int, window: int) -> Floats:
    return np.array([1.0, num_tokens, num_tokens * window])
