"""What listeners and watchers of the task book are told, and when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from scheduler.clock import ManualClock
from scheduler.errors import InvalidRequest, TaskNotFound
from scheduler.operations import Operations, TenantChange
from scheduler.result.stream import MAILBOX_SIZE
from scheduler.stores.sqlite import Store
from scheduler.task import Grant, Task, TaskError, TaskEvent
from scheduler.task_book import TaskBook
from scheduler.testing.tasks import MODEL, chunk, submission


class Stage:
    """A book with one task, and shorthands for what happens to it."""

    def __init__(self, store: Store) -> None:
        self.clock = ManualClock()
        self.book = TaskBook(store, self.clock, lease_ttl_s=10.0, max_attempts=2)
        self.id = ""

    async def submit(self) -> Task:
        task, _ = await self.book.submit(submission())
        self.id = task.id
        return task

    async def claim(self) -> Grant:
        (grant,) = await self.book.claim(MODEL, runner="r1", replica="demo__r0")
        return grant

    def watch(self, cursor: int = 0) -> AsyncIterator[TaskEvent]:
        return self.book.watch(self.id, cursor)


@pytest_asyncio.fixture
async def stage() -> AsyncIterator[Stage]:
    store = Store(":memory:")
    yield Stage(store)
    await store.close()


def told(event: TaskEvent) -> str:
    """An event in short: "state leased", "chunk 3", "end succeeded"."""
    if event.chunk is not None:
        return f"chunk {event.chunk.seq}"
    assert event.task is not None
    return f"{event.kind} {event.task.state.value}"


async def everything(events: AsyncIterator[TaskEvent]) -> list[str]:
    return [told(event) async for event in events]


async def test_a_watcher_is_told_the_whole_life_of_a_task(stage: Stage) -> None:
    await stage.submit()
    events = stage.watch()
    seen = [told(await anext(events))]

    await stage.claim()
    await stage.book.append(stage.id, 1, [chunk(0)])
    await stage.book.release(stage.id, 1, "worker died")
    await stage.claim()
    await stage.book.append(stage.id, 2, [chunk(1), chunk(2)])
    await stage.book.succeed(stage.id, 2, {})
    seen += await everything(events)

    assert seen == [
        "state queued",
        "state leased",
        "chunk 0",
        "state queued",
        "state leased",
        "chunk 1",
        "chunk 2",
        "end succeeded",
    ]


async def test_a_watcher_that_comes_late_gets_the_journal_and_the_end(stage: Stage) -> None:
    await stage.submit()
    await stage.claim()
    await stage.book.append(stage.id, 1, [chunk(0), chunk(1)])
    await stage.book.fail(stage.id, 1, TaskError(500, "no"))

    assert await everything(stage.watch()) == [
        "state failed",
        "chunk 0",
        "chunk 1",
        "end failed",
    ]


async def test_a_cursor_goes_on_where_the_last_event_ended(stage: Stage) -> None:
    await stage.submit()
    await stage.claim()
    await stage.book.append(stage.id, 1, [chunk(0), chunk(1)])
    events = stage.watch()
    await anext(events)
    first = await anext(events)
    await stage.book.append(stage.id, 1, [chunk(2)])
    await stage.book.succeed(stage.id, 1, {})

    again = await everything(stage.watch(first.cursor))

    assert again == ["state succeeded", "chunk 1", "chunk 2", "end succeeded"]


async def test_a_slow_reader_reads_from_the_journal_what_no_longer_fits_its_mailbox(
    stage: Stage,
) -> None:
    await stage.submit()
    await stage.claim()
    events = stage.watch()
    await anext(events)
    num_chunks = 3 * MAILBOX_SIZE
    for seq in range(num_chunks):
        await stage.book.append(stage.id, 1, [chunk(seq)])
    await stage.book.succeed(stage.id, 1, {})

    seen = await everything(events)

    assert seen == [f"chunk {seq}" for seq in range(num_chunks)] + ["end succeeded"]


async def test_a_journal_of_many_pages_is_read_to_its_end(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scheduler.task_book.WATCH_PAGE", 3)
    await stage.submit()
    await stage.claim()
    await stage.book.append(stage.id, 1, [chunk(seq) for seq in range(10)])
    await stage.book.succeed(stage.id, 1, {})

    seen = await everything(stage.watch())

    assert seen == ["state succeeded", *(f"chunk {n}" for n in range(10)), "end succeeded"]


async def test_watchers_of_one_task_do_not_take_from_each_other(stage: Stage) -> None:
    await stage.submit()
    watching = [asyncio.ensure_future(everything(stage.watch())) for _ in range(5)]
    await stage.claim()
    await stage.book.append(stage.id, 1, [chunk(0)])
    await stage.book.succeed(stage.id, 1, {})

    for seen in await asyncio.gather(*watching):
        assert seen[-2:] == ["chunk 0", "end succeeded"]


async def test_chunks_arrive_once_and_in_order_whenever_the_watcher_comes(stage: Stage) -> None:
    """Attach at every moment between two appends, also while one is under way."""
    await stage.submit()
    await stage.claim()
    watching = []
    for seq in range(60):
        appended = asyncio.ensure_future(stage.book.append(stage.id, 1, [chunk(seq)]))
        for _ in range(seq % 4):
            await asyncio.sleep(0)
        watching.append(asyncio.ensure_future(everything(stage.watch())))
        await appended
    await stage.book.succeed(stage.id, 1, {})

    for seen in await asyncio.gather(*watching):
        assert seen[1:] == [f"chunk {n}" for n in range(60)] + ["end succeeded"]


@pytest.mark.parametrize("cursor", [-1, 2])
async def test_a_cursor_beyond_the_journal_is_refused(stage: Stage, cursor: int) -> None:
    await stage.submit()
    await stage.claim()
    await stage.book.append(stage.id, 1, [chunk(0)])

    with pytest.raises(InvalidRequest, match=f"cursor is {cursor}; .* chunks 0 to 1") as refusal:
        await everything(stage.watch(cursor))
    assert refusal.value.field == "cursor"


async def test_an_unknown_task_cannot_be_watched(stage: Stage) -> None:
    with pytest.raises(TaskNotFound):
        await everything(stage.book.watch("nothing"))


async def test_a_watcher_that_leaves_is_forgotten(stage: Stage) -> None:
    await stage.submit()
    events = stage.watch()
    await anext(events)

    await events.aclose()

    assert repr(stage.book.ledger.watchers) == "<Watchers tasks=0 watchers=0>"


async def test_watchers_hear_of_a_move_whose_caller_went_away(stage: Stage) -> None:
    await stage.submit()
    events = stage.watch()
    await anext(events)
    caller = asyncio.ensure_future(stage.claim())
    await asyncio.sleep(0)
    caller.cancel()

    assert told(await anext(events)) == "state leased"


async def test_a_claimable_task_is_announced_on_acceptance_and_on_return(stage: Stage) -> None:
    models: list[str] = []
    stage.book.ledger.on_queued(models.append)

    await stage.submit()
    assert models == [MODEL]
    await stage.claim()
    await stage.book.release(stage.id, 1, "worker died")
    assert models == [MODEL, MODEL]


async def test_a_repeated_submission_is_not_announced(stage: Stage) -> None:
    models: list[str] = []
    stage.book.ledger.on_queued(models.append)

    for _ in range(2):
        await stage.book.submit(submission(idempotency_key="k"))

    assert models == [MODEL]


@pytest.mark.parametrize("end", ["cancel", "lease expiry"])
async def test_a_lease_that_others_ended_is_announced_with_its_holder(
    stage: Stage, end: str
) -> None:
    ended: list[tuple[str, int, str]] = []
    stage.book.ledger.on_lease_ended(lambda *lease: ended.append(lease))
    await stage.submit()
    leased = (await stage.claim()).task

    stage.clock.advance(60)
    await (stage.book.cancel(stage.id) if end == "cancel" else stage.book.lose_expired())

    assert ended == [(leased.id, leased.fence, leased.runner)]


@pytest.mark.parametrize("end", ["succeed", "release"])
async def test_a_lease_that_its_holder_ended_is_not_announced(stage: Stage, end: str) -> None:
    ended: list[tuple[str, int, str]] = []
    stage.book.ledger.on_lease_ended(lambda *lease: ended.append(lease))
    await stage.submit()
    await stage.claim()

    if end == "succeed":
        await stage.book.succeed(stage.id, 1, {})
    else:
        await stage.book.release(stage.id, 1, "worker died")

    assert ended == []


async def test_a_listener_that_raises_does_not_fail_the_caller(stage: Stage) -> None:
    reported: list[str] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: reported.append(str(context["exception"]))
    )

    def broken(model: str) -> None:
        raise LookupError(f"no ear for {model}")

    stage.book.ledger.on_queued(broken)
    await stage.submit()

    assert reported == [f"no ear for {MODEL}"]


async def test_a_sweep_of_many_goes_on_to_the_end(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scheduler.task_book.SWEEP_BATCH", 3)
    for _ in range(7):
        await stage.submit()
    await stage.book.claim(MODEL, runner="r1", replica="demo__r0", limit=7)
    stage.clock.advance(10)

    assert len(await stage.book.lose_expired()) == 7


async def test_a_setting_out_of_range_is_refused_by_name(stage: Stage) -> None:
    operations = Operations(stage.book.ledger, stage.book.rules.queue)
    with pytest.raises(InvalidRequest, match="weight_permille is 0; allowed are 1 to 1000000"):
        await operations.set_tenant("ann", TenantChange(weight_permille=0))
    with pytest.raises(InvalidRequest, match="num_replicas is -1; allowed is 0 or more"):
        await operations.set_desired_replicas(MODEL, -1)


async def test_what_another_control_plane_wrote_before_is_read_first(stage: Stage) -> None:
    await stage.submit()
    await stage.claim()
    events = stage.watch()
    await anext(events)
    elsewhere = TaskBook(stage.book.ledger.store, stage.clock, lease_ttl_s=10.0)

    await elsewhere.append(stage.id, 1, [chunk(0)])
    await stage.book.append(stage.id, 1, [chunk(1)])
    await elsewhere.append(stage.id, 1, [chunk(2)])
    await stage.book.succeed(stage.id, 1, {})

    assert await everything(events) == ["chunk 0", "chunk 1", "chunk 2", "end succeeded"]
