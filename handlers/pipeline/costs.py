"""What a stage is expected to take, learnt from what it took.

A decode step's time depends on its rows, and where stages share cores or memory on how many of
them are at work, so on the lanes; it is remembered as it was seen. A prefill step's time depends
on its tokens and on what they attend to, and steps are seldom alike; it is fitted. Both forget
slowly, take no single slow step at its word, and know nothing of what is decided from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

#: How far one observation moves an estimate.
_WEIGHT: Final = 0.2
#: An observation counts as at most this many times the estimate: a pause is no new speed.
_CLIP: Final = 4.0
#: How much of a step's time is taken to grow with its rows while only one number was seen.
_SHARE_OF_ROWS: Final = 0.5
#: What the last observation but one still counts, in a fit.
_MEMORY: Final = 0.95
#: A fit with one term more has to leave this much less unexplained.
_WORTH_A_TERM: Final = 0.8
#: Below this a pivot says that terms always changed together.
_SINGULAR: Final = 1e-4
#: Terms of the fits that are tried: per step, per token, per token and position attended to.
_TERMS: Final = ((1,), (0, 1), (1, 2), (0, 1, 2))


@dataclass(slots=True)
class _Smoothed:
    seconds: float
    count: int = 1

    def add(self, seconds: float) -> None:
        self.count += 1
        if self.count == 2:
            # The first step of a shape may have compiled something.
            self.seconds = min(self.seconds, seconds)
        else:
            self.seconds += _WEIGHT * (min(seconds, _CLIP * self.seconds) - self.seconds)


class RowTimes:
    """Decode steps of one stage."""

    def __init__(self) -> None:
        #: By lanes, then by rows.
        self._seen: dict[int, dict[int, _Smoothed]] = {}

    def observe(self, lanes: int, num_rows: int, seconds: float) -> None:
        """A step of so many rows took so long, with so many lanes."""
        by_rows = self._seen.setdefault(lanes, {})
        if num_rows in by_rows:
            by_rows[num_rows].add(seconds)
        else:
            by_rows[num_rows] = _Smoothed(seconds)

    def predict(self, lanes: int, num_rows: int) -> float | None:
        """Seconds for a step, from the nearest number of lanes seen; None: nothing was seen."""
        if not self._seen:
            return None
        nearest = min(self._seen, key=lambda seen: (abs(seen - lanes), -seen))
        return _read({rows: each.seconds for rows, each in self._seen[nearest].items()}, num_rows)


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
        self._matrix = [[0.0] * 3 for _ in range(3)]
        self._vector = [0.0] * 3
        self._total = 0.0
        self._fitted: tuple[float, ...] | None = None
        self._count = 0
        #: Tokens of the largest step seen.
        self.largest = 0

    def observe(self, num_tokens: int, window: int, seconds: float) -> None:
        """A step of so many tokens that attend to ``window`` positions took so long."""
        expected = self.predict(num_tokens, window)
        if expected is not None and self._count >= 4:
            seconds = min(seconds, _CLIP * expected)
        terms = [term / max(seconds, 1e-9) for term in _terms(num_tokens, window)]
        for row in range(3):
            self._vector[row] = _MEMORY * self._vector[row] + terms[row]
            for column in range(3):
                kept = _MEMORY * self._matrix[row][column]
                self._matrix[row][column] = kept + terms[row] * terms[column]
        self._total = _MEMORY * self._total + 1
        self._count, self.largest = self._count + 1, max(self.largest, num_tokens)
        self._fitted = None

    def predict(self, num_tokens: int, window: int) -> float | None:
        """Seconds for a step; None: nothing was seen."""
        if not self._count:
            return None
        if self._fitted is None:
            self._fitted = self._fit()
        terms = _terms(num_tokens, window)
        return sum(weight * term for weight, term in zip(self._fitted, terms, strict=True))

    def _fit(self) -> tuple[float, ...]:
        """The simplest weights, none below 0, that explain nearly as much as any."""
        best: tuple[float, ...] = (0.0, 0.0, 0.0)
        unexplained = float("inf")
        for chosen in _TERMS:
            weights = self._solve(chosen)
            if weights is None or min(weights) < 0:
                continue
            error = max(0.0, self._error(weights))
            if error < _WORTH_A_TERM * unexplained:
                best, unexplained = weights, error
        return best

    def _error(self, weights: tuple[float, ...]) -> float:
        matrix, vector = self._matrix, self._vector
        squared = sum(weights[i] * weights[j] * matrix[i][j] for i in range(3) for j in range(3))
        return squared - 2 * sum(weights[i] * vector[i] for i in range(3)) + self._total

    def _solve(self, chosen: tuple[int, ...]) -> tuple[float, ...] | None:
        """Weights of the chosen terms, 0 for the others; None: what was seen cannot tell."""
        scale = [self._matrix[i][i] ** 0.5 for i in chosen]
        rows = [
            [self._matrix[i][j] / (scale[a] * scale[b]) for b, j in enumerate(chosen)]
            + [self._vector[i] / scale[a]]
            for a, i in enumerate(chosen)
        ]
        for at in range(len(rows)):
            if rows[at][at] < _SINGULAR:
                return None
            pivot = [value / rows[at][at] for value in rows[at]]
            rows = [_less(row, row[at], pivot) for row in rows]
            rows[at] = pivot
        weights = [0.0] * 3
        for a, i in enumerate(chosen):
            weights[i] = rows[a][-1] / scale[a]
        return tuple(weights)


def _less(row: list[float], factor: float, pivot: list[float]) -> list[float]:
    return [value - factor * mine for value, mine in zip(row, pivot, strict=True)]


def _terms(num_tokens: int, window: int) -> tuple[float, float, float]:
    return 1.0, float(num_tokens), float(num_tokens * window)
