"""A paced answer that is left in the middle leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from scheduler.gateway.pacing import paced


async def test_a_reader_that_leaves_as_the_items_end_leaves_no_error_unheard() -> None:
    unheard: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
    is_over = asyncio.Event()

    async def items() -> AsyncGenerator[int, None]:
        yield 1
        await is_over.wait()

    answer = paced(items(), asyncio.Event(), None)
    assert await anext(answer) == 1
    reading = asyncio.ensure_future(anext(answer))
    await asyncio.sleep(0)

    # In one turn of the loop: the items end first, and then the reader goes.
    is_over.set()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading

    await asyncio.sleep(0)
    del reading, answer
    gc.collect()
    assert unheard == []
