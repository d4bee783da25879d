"""Decides when a provider that failed is asked again.

A few failures in a row and it is left alone, each time twice as long; then one call tries it. One
that says how long to wait is left alone for as long. Moments are handed in.
"""

from __future__ import annotations

from typing import Final

from scheduler.providers.base import ProviderError, ProviderLimited, ProviderRefused

#: Failures in a row after which it is left alone; one that says no is asked again later at once.
_MAX_FAILURES: Final = 3
_FIRST_PAUSE_S: Final = 5.0
_LONGEST_PAUSE_S: Final = 300.0


class Breaker:
    """What one provider's failures mean."""

    def __init__(self) -> None:
        self._num_failures = 0
        self._closed_until = 0.0
        #: What went wrong last; empty: nothing since it last answered.
        self.reason = ""

    def __repr__(self) -> str:
        return f"<Breaker failures={self._num_failures}>"

    def may_ask(self, now: float) -> bool:
        """Whether it may be asked at a moment."""
        return now >= self._closed_until

    def succeeded(self) -> None:
        """It answered."""
        self._num_failures, self._closed_until, self.reason = 0, 0.0, ""

    def failed(self, error: ProviderError, now: float) -> None:
        """It did not do what it was asked."""
        self._num_failures += 1
        self.reason = str(error)
        if isinstance(error, ProviderLimited) and error.retry_after_s is not None:
            pause_s = error.retry_after_s
        elif isinstance(error, ProviderRefused | ProviderLimited):
            pause_s = self._pause_s(self._num_failures)
        else:
            pause_s = self._pause_s(self._num_failures - _MAX_FAILURES + 1)
        self._closed_until = max(self._closed_until, now + pause_s)

    @staticmethod
    def _pause_s(count: int) -> float:
        return min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** (count - 1)) if count > 0 else 0.0
