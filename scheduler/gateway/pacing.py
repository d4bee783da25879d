"""A long answer, piece by piece, that also notices silence and the end of the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, TypeVar

from scheduler.gateway.problems import GatewayClosing

T = TypeVar("T")


async def paced(
    items: AsyncIterator[T], closing: asyncio.Event, heartbeat_s: float | None
) -> AsyncGenerator[T | None, None]:
    """The items as they come; None whenever ``heartbeat_s`` passed without one.

    Raises:
        GatewayClosing: the gateway stops; an item that is there already comes first.
    """
    closed: asyncio.Future[Any] = asyncio.ensure_future(closing.wait())
    pending: asyncio.Future[T] | None = None
    try:
        while True:
            pending = pending or asyncio.ensure_future(anext(items))
            await asyncio.wait(
                (pending, closed), timeout=heartbeat_s, return_when=asyncio.FIRST_COMPLETED
            )
            if pending.done():
                item, pending = _result(pending), None
                if isinstance(item, _End):
                    return
                yield item
            elif closed.done():
                raise GatewayClosing("this gateway is closing; what was accepted goes on")
            else:
                yield None
    finally:
        await _settle(pending, closed)
        if isinstance(items, AsyncGenerator):
            await items.aclose()


class _End:
    """There are no more items."""


def _result(pending: asyncio.Future[T]) -> T | _End:
    try:
        return pending.result()
    except StopAsyncIteration:
        return _End()


async def _settle(*futures: asyncio.Future[Any] | None) -> None:
    """Cancel what goes on, and hear what was left to say by what has ended."""
    known = [future for future in futures if future is not None]
    for future in known:
        future.cancel()
    await asyncio.gather(*known, return_exceptions=True)
