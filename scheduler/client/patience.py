"""How long and how often to try again: a back-off that grows, with jitter, up to a total.

The jitter keeps the clients of a gateway that comes back from coming back at one moment. Progress
makes the client patient anew, so only an unbroken silence of ``total_s`` ends it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final

from scheduler.clock import Clock, SystemClock

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 3.0


class Patience:
    """One run of tries."""

    def __init__(
        self,
        total_s: float,
        tell: Callable[[str], None] = lambda _words: None,
        clock: Clock | None = None,
        sleep: Callable[[float], None] = time.sleep,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """``tell`` hears at the beginning of each silence what is the matter."""
        self._total_s = total_s
        self._tell = tell
        self._clock = clock or SystemClock()
        self._sleep = sleep
        self._draw = draw
        self.renew()

    def renew(self) -> None:
        """Something came: start anew."""
        self._since: float | None = None
        self._pause_s = FIRST_PAUSE_S

    def pause(self, problem: str = "", at_least_s: float = 0.0) -> bool:
        """Wait before the next try; False, at once, when patience has run out, or would have by the
        time that the other side asked to be left alone for (``at_least_s``)."""
        now = self._clock.monotonic()
        since = now if self._since is None else self._since
        left_s = since + self._total_s - now
        if left_s <= 0 or left_s < at_least_s:
            return False
        if self._since is None:
            self._since = now
            self._tell(f"{problem}; trying again for {self._total_s:.0f} s")
        jitter_s = self._pause_s * (0.5 + self._draw())
        self._sleep(min(left_s, at_least_s + jitter_s if at_least_s else jitter_s))
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        return True
