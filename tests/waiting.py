"""How tests wait: look for what they need until it is there, and fail when it does not come.

No test sleeps for a time it guesses; these look again and again, and are the only that pause.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def until(
    look: Callable[[], Awaitable[T] | T],
    holds: Callable[[T], object] = bool,
    *,
    timeout_s: float = 10.0,
    every_s: float = 0.01,
) -> T:
    """The first value ``look`` gives (or awaits) that ``holds``; TimeoutError when none does."""
    async with asyncio.timeout(timeout_s):
        while True:
            found = look()
            value: T = await found if inspect.isawaitable(found) else found
            if holds(value):
                return value
            await asyncio.sleep(every_s)


async def insist(
    ask: Callable[[], Awaitable[T]],
    despite: type[Exception],
    *,
    timeout_s: float = 20.0,
    every_s: float = 0.02,
) -> T:
    """What ``ask`` answers once it no longer raises ``despite``; TimeoutError when it always does.

    As clients and runners do whose question may be repeated.
    """
    async with asyncio.timeout(timeout_s):
        while True:
            try:
                return await ask()
            except despite:
                await asyncio.sleep(every_s)


def wait_for(what: str, look: Callable[[], T | None], timeout_s: float = 30.0) -> T:
    """The first true value ``look`` returns; AssertionError naming ``what`` after the time-out."""
    deadline = time.monotonic() + timeout_s
    while True:
        if found := look():
            return found
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s in vain for {what}"
        time.sleep(0.02)
