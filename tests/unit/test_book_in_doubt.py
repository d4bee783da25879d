"""What becomes of callers, watchers and waiting tasks when the store refuses."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from scheduler.clock import ManualClock
from scheduler.errors import StoreUnavailable
from scheduler.stores import base, sqlite
from scheduler.task import Grant, TaskEvent
from scheduler.task_book import TaskBook
from scheduler.testing.tasks import MODEL, chunk, submission


class Doubtful(base.Store):
    """A store that does what it is told and says that it did not, as often as it is asked to."""

    is_shared = False

    def __init__(self) -> None:
        self._inner = sqlite.Store(sqlite.MEMORY)
        self.num_doubtful = self.num_unreadable = 0

    async def run(
        self, command: Callable[[base.Transaction], Any], then: Callable[..., None] | None = None
    ) -> Any:
        if not self.num_doubtful:
            return await self._inner.run(command, then)
        self.num_doubtful -= 1
        await self._inner.run(command)
        error = StoreUnavailable("whether it was written is unknown")
        if then is not None:
            then(None, error)
        raise error

    async def read(self, query: Callable[[base.Transaction], Any]) -> Any:
        if self.num_unreadable:
            self.num_unreadable -= 1
            raise StoreUnavailable("cannot be read")
        return await self._inner.read(query)

    def listen(self, listener: Callable[[base.News | None], None]) -> None: ...

    async def close(self) -> None:
        await self._inner.close()


class Stage:
    """A task that is leased, watched, and has one chunk."""

    def __init__(self) -> None:
        self.store = Doubtful()
        self.book = TaskBook(self.store, ManualClock(), lease_ttl_s=10)
        self.heard: list[str] = []

    async def open(self) -> None:
        task, _ = await self.book.submit(submission())
        self.id = task.id
        [self.grant] = await self.claim()
        await self.append(0)
        self.watching = asyncio.create_task(self._watch())
        await self.until(1)

    async def claim(self) -> list[Grant]:
        return await self.book.claim(MODEL, runner="r1", replica="demo__r0")

    async def append(self, seq: int) -> None:
        await self.book.append(self.id, self.grant.task.fence, [chunk(seq)])

    async def succeed(self) -> None:
        await self.book.succeed(self.id, self.grant.task.fence, {})

    async def until(self, num_chunks: int) -> None:
        async with asyncio.timeout(5):
            while len([event for event in self.heard if event != "state"]) < num_chunks:
                await asyncio.sleep(0)

    async def _watch(self) -> None:
        async for event in self.book.watch(self.id):
            self.heard.append(_short(event))


def _short(event: TaskEvent) -> str:
    return event.kind if event.chunk is None else f"{event.chunk.seq}"


@pytest_asyncio.fixture
async def stage() -> AsyncIterator[Stage]:
    stage = Stage()
    await stage.open()
    yield stage
    stage.watching.cancel()
    await asyncio.gather(stage.watching, return_exceptions=True)
    await stage.store.close()


async def test_a_watcher_misses_no_chunk_whose_commit_was_in_doubt(stage: Stage) -> None:
    stage.store.num_doubtful = 1
    with pytest.raises(StoreUnavailable):
        await stage.append(1)

    await stage.append(1)
    await stage.append(2)

    await stage.until(3)
    assert stage.heard == ["state", "0", "1", "2"]


async def test_a_watcher_hears_the_end_whose_commit_was_in_doubt(stage: Stage) -> None:
    stage.store.num_doubtful = 1
    with pytest.raises(StoreUnavailable):
        await stage.succeed()

    await stage.succeed()

    await asyncio.wait_for(stage.watching, 5)
    assert stage.heard[-1] == "end"


async def test_a_watcher_that_has_begun_outlives_a_store_that_cannot_be_read(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scheduler.task_book.STORE_PAUSE_S", 0)
    stage.store.num_doubtful, stage.store.num_unreadable = 1, 2
    with pytest.raises(StoreUnavailable):
        await stage.append(1)

    await stage.succeed()

    await asyncio.wait_for(stage.watching, 5)
    assert stage.heard[1:] == ["0", "1", "end"]


@pytest.mark.parametrize(
    ("error", "num_unheard"), [(StoreUnavailable("the disk is full"), 0), (LookupError("a bug"), 1)]
)
async def test_of_errors_whose_caller_went_away_only_bugs_are_reported(
    error: Exception, num_unheard: int
) -> None:
    unheard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
    store = sqlite.Store(sqlite.MEMORY)

    def fail(tx: base.Transaction) -> None:
        raise error

    leaving = asyncio.create_task(store.run(fail))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    await store.run(lambda tx: None)
    gc.collect()

    assert [context["exception"] for context in unheard] == [error] * num_unheard
    await store.close()
