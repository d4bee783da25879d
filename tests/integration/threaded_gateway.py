"""A gateway in a thread of its own, for a client or a command that blocks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from tests.integration.gateway_system import GatewaySystem

T = TypeVar("T")


class Threaded:
    """A gateway in a thread of its own, for a client that blocks."""

    def __init__(self, store: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="gateway")
        self._thread.start()
        self.system = self.call(self._make(store))

    async def _make(self, store: Path) -> GatewaySystem:
        system = GatewaySystem(store)
        await system.open()
        return system

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(20)

    def restart(self) -> None:
        self.call(self.system.close())
        self.call(self.system.open())

    def go_on(self) -> None:
        assert self.system.runner is not None
        self.loop.call_soon_threadsafe(self.system.runner.go_on.set)

    def state_of(self, task_id: str) -> str:
        return self.call(self.system.book.task(task_id)).state.value

    def close(self) -> None:
        assert self.system.runner is not None
        self.call(self.system.runner.close())
        self.call(self.system.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()
