"""Decides how many steps are in flight at once: the *lanes*."""

from __future__ import annotations


class LaneModel:
    """How many lanes to cut the running rows into."""

    def __init__(self, num_stages: int, fixed: int | None = None) -> None:
        """``fixed``: this many, whatever is observed; None: by the observed times."""
        self._num_stages, self._fixed = num_stages, fixed

    def choose(self, num_rows: int) -> int:
        """Lanes for so many rows: at least 1, at most one for each row."""
        return max(1, min(self._fixed or self._num_stages, num_rows))

    def observe(self, lanes: int, num_rows: int, stage: int, seconds: float) -> None:
        """A stage took ``seconds`` for a decode step of ``num_rows``, with so many lanes."""
