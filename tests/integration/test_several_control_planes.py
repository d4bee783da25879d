"""Two control planes on one database: what happens at one is seen at the other, as it happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing

import pytest_asyncio

from scheduler.clock import SystemClock
from scheduler.operations import Operations
from scheduler.rpc import plait_pb2 as pb
from scheduler.stores.base import News
from scheduler.stores.postgres import Store
from scheduler.task import TaskEvent, TaskState
from scheduler.task_book import TaskBook
from scheduler.testing.tasks import MODEL, chunk, problems, submission
from tests.integration.dispatcher_system import Stream, control_plane, finish, progress
from tests.postgres_server import Server
from tests.waiting import until


class Plane:
    """A control plane's store and book, without what listens on ports."""

    def __init__(self, url: str) -> None:
        self.store = Store(url)
        self.book = TaskBook(self.store, SystemClock(), lease_ttl_s=60)
        self.heard: asyncio.Queue[News | None] = asyncio.Queue()
        self.store.listen(self.heard.put_nowait)

    async def hears(self) -> News | None:
        async with asyncio.timeout(10):
            return await self.heard.get()


@pytest_asyncio.fixture
async def planes(postgres_url: str) -> AsyncIterator[list[Plane]]:
    """Two, listening to each other."""
    opened = [Plane(postgres_url) for _ in range(2)]
    for plane in opened:
        assert await plane.hears() is None
    yield opened
    for plane in opened:
        await plane.store.close()


async def collect(plane: Plane, task_id: str, cursor: int, until: int) -> list[TaskEvent]:
    """What a watcher hears from a cursor on until it has seen ``until`` chunks or the end."""
    heard: list[TaskEvent] = []
    async with asyncio.timeout(10), aclosing(plane.book.watch(task_id, cursor)) as events:
        async for event in events:
            heard.append(event)
            if event.cursor >= until:
                break
    return heard


async def test_news_name_what_changed_and_are_not_told_to_their_own_plane(
    planes: list[Plane],
) -> None:
    here, there = planes

    task, _ = await here.book.submit(submission())
    (grant,) = await here.book.claim(MODEL, runner="r1", replica="x")
    await here.book.cancel(task.id)
    await there.book.submit(submission("bob"))

    assert await there.hears() == News((task.id,), (MODEL,))
    assert await there.hears() == News((task.id,))
    assert await there.hears() == News((task.id,), (), ((task.id, grant.task.fence, "r1"),))
    # The first that is heard here is what the other did.
    assert (await here.hears() or News(None)).models == (MODEL,)
    assert here.heard.empty()


async def test_a_batch_is_one_notification(planes: list[Plane]) -> None:
    here, there = planes

    tasks = await asyncio.gather(*(here.book.submit(submission()) for _ in range(20)))

    told: list[str] = []
    num_notifications = 0
    while len(told) < len(tasks):
        news = await there.hears()
        assert news is not None
        told += news.task_ids or ()
        num_notifications += 1
    assert sorted(told) == sorted(task.id for task, _ in tasks)
    assert num_notifications <= here.store.num_commits


async def test_a_watcher_elsewhere_follows_the_output_as_it_comes(planes: list[Plane]) -> None:
    here, there = planes
    task, _ = await here.book.submit(submission())
    (grant,) = await here.book.claim(MODEL, runner="r1", replica="x")
    fence = grant.task.fence

    # Each chunk is written only when the one before was seen elsewhere: none can be late.
    for seq in range(3):
        watching = asyncio.create_task(collect(there, task.id, seq, until=seq + 1))
        await here.book.append(task.id, fence, [chunk(seq)])
        assert [e.chunk for e in await watching if e.chunk is not None] == [chunk(seq)]


async def test_one_watcher_hears_all_of_a_task_that_another_plane_serves(
    planes: list[Plane],
) -> None:
    here, there = planes
    task, _ = await here.book.submit(submission())
    heard: list[TaskEvent] = []
    has_news = asyncio.Event()

    async def watch() -> None:
        async for event in there.book.watch(task.id):
            heard.append(event)
            has_news.set()

    async def until(kind: str, cursor: int) -> None:
        while not any((e.kind, e.cursor) == (kind, cursor) for e in heard):
            has_news.clear()
            await has_news.wait()

    async with asyncio.timeout(10):
        watching = asyncio.create_task(watch())
        await until("state", 0)
        (grant,) = await here.book.claim(MODEL, runner="r1", replica="x")
        for seq in range(3):
            await here.book.append(task.id, grant.task.fence, [chunk(seq)])
            await until("chunk", seq + 1)
        await here.book.succeed(task.id, grant.task.fence, {})
        await watching

    assert [e.cursor for e in heard if e.kind == "chunk"] == [1, 2, 3]
    assert heard[-1].kind == "end"
    assert heard[-1].task is not None
    assert heard[-1].task.state is TaskState.SUCCEEDED


async def test_a_watcher_goes_on_at_another_plane_from_its_cursor(planes: list[Plane]) -> None:
    here, there = planes
    task, _ = await here.book.submit(submission())
    (grant,) = await here.book.claim(MODEL, runner="r1", replica="x")
    await here.book.append(task.id, grant.task.fence, [chunk(0), chunk(1)])
    seen = (await collect(here, task.id, 0, until=1))[-1].cursor
    await here.book.append(task.id, grant.task.fence, [chunk(2)])
    await here.book.succeed(task.id, grant.task.fence, {})

    events = await collect(there, task.id, seen, until=99)

    assert [e.chunk for e in events if e.kind == "chunk"] == [chunk(1), chunk(2)]
    assert events[-1].kind == "end"


async def test_what_operators_set_at_one_plane_is_known_at_the_other(planes: list[Plane]) -> None:
    here, there = planes
    looked = asyncio.Event()
    there.book.ledger.on_desired_replicas(looked.set)

    await Operations(here.book.ledger, here.book.rules.queue).set_desired_replicas(MODEL, 3)

    async with asyncio.timeout(10):
        await looked.wait()
    wanted = await there.book.ledger.store.read(lambda tx: tx.desired_replicas())
    assert wanted == {MODEL: 3}


async def test_a_listener_whose_connection_broke_hears_that_it_may_have_missed_something(
    planes: list[Plane], postgres: Server, postgres_url: str
) -> None:
    here, there = planes

    assert postgres.end_sessions(postgres_url)

    assert await there.hears() is None
    task, _ = await here.book.submit(submission())
    # A second break may have been heard of meanwhile; what is told afterwards arrives.
    while (news := await there.hears()) is None:
        pass
    assert news.task_ids == (task.id,)


async def test_runners_and_clients_of_different_planes_find_each_other(
    postgres_url: str, free_port: int
) -> None:
    """A task that is submitted here wakes the dispatcher there, is followed here while the runner
    there works on it, and its cancellation here reaches that runner."""
    here = Plane(postgres_url)
    assert await here.hears() is None
    async with AsyncExitStack() as stack, asyncio.timeout(20):
        # It does not look for itself within the time of this test.
        control = control_plane(free_port, Store(postgres_url), poll_s=1000)
        there = await stack.enter_async_context(control)
        runner = await there.welcomed()
        await _is_listening(there.book, here)

        task, _ = await here.book.submit(submission())
        grant = await runner.hear("grant")
        assert grant.task_id == task.id
        watching = asyncio.create_task(collect(here, task.id, 0, until=1))
        await runner.say(progress(grant, 0))
        assert (await watching)[-1].cursor == 1
        await here.book.cancel(task.id)
        cancelled = await runner.hear("cancel")
        assert (cancelled.task_id, cancelled.fence) == (grant.task_id, grant.fence)

        second, _ = await here.book.submit(submission())
        await _finish_next(runner)
        assert (await collect(here, second.id, 0, until=99))[-1].kind == "end"
    assert await here.store.read(problems) == []
    await here.store.close()


async def _finish_next(runner: Stream) -> None:
    grant: pb.Grant = await runner.hear("grant")
    await runner.say(progress(grant, 0), finish(grant))


async def _is_listening(book: TaskBook, other: Plane) -> None:
    """Wait until a book hears of what another plane does."""
    heard = asyncio.Event()
    book.ledger.store.listen(lambda news: heard.set())

    async def call() -> bool:
        await Operations(other.book.ledger, other.book.rules.queue).set_desired_replicas(MODEL, 1)
        return heard.is_set()

    await until(call)
