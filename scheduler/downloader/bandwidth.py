"""Holds all connections of a process together to a number of bytes per second."""

from __future__ import annotations

import asyncio
from typing import Final

from scheduler.clock import Clock

#: Seconds' worth that may come at once after a silence.
_BURST_S: Final = 0.25


class Bandwidth:
    """Lets bytes through at a rate; 0: at any."""

    def __init__(self, bytes_per_s: float, clock: Clock) -> None:
        self._rate, self._clock = bytes_per_s, clock
        #: When all that was let through will have been paid for.
        self._paid_at = clock.monotonic()

    async def take(self, num_bytes: int) -> None:
        """Wait until so many bytes may have come."""
        if not self._rate:
            return
        now = self._clock.monotonic()
        self._paid_at = max(self._paid_at, now - _BURST_S) + num_bytes / self._rate
        if (wait_s := self._paid_at - now) > 0:
            await asyncio.sleep(wait_s)
