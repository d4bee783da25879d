"""Tasks whose first token is overdue in a flaky container, with played runners on real streams."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from scheduler.container import Event, Flakiness, Reliance
from scheduler.errors import StaleLease
from scheduler.rpc import plait_pb2 as pb
from scheduler.task import JournalChunk, Submission, Task, TaskState
from scheduler.testing.tasks import problems
from tests.integration.dispatcher_system import (
    Control,
    Stream,
    control_plane,
    finish,
    hello,
    progress,
)
from tests.waiting import until

FLAKY = Flakiness("rented", "").noted(Event.LOSS)


@pytest_asyncio.fixture
async def control(free_port: int) -> AsyncIterator[Control]:
    reliance = Reliance()
    reliance.learn([FLAKY, Flakiness("calm", "", hours=99.0)], [])
    async with control_plane(free_port, reliance=reliance, journal_interval_s=0.2) as opened:
        yield opened


async def submit(control: Control) -> Task:
    submission = Submission(
        "ann", "demo", {"prompt": "x", "max_new_tokens": 9}, 9, priority_class="interactive"
    )
    return (await control.book.submit(submission))[0]


async def rented(control: Control, provider: str = "rented") -> Stream:
    names = {"runner_id": provider, "node": provider, "container": "c1"}
    return await control.welcomed(hello(provider=provider, capacity=1, **names))


async def measured(control: Control, stream: Stream) -> None:
    """Enough grants have been begun at once for a later one to be late."""
    for _ in range(25):
        await submit(control)
        grant = await stream.hear("grant")
        await stream.say(progress(grant, 0), finish(grant))
        while not (await stream.hear("ack")).is_final:
            pass


async def handed_over(control: Control) -> tuple[Task, pb.Grant, Stream, Stream]:
    """A task that a flaky container was late with, and another runner has now."""
    late = await rented(control)
    await measured(control, late)
    task = await submit(control)
    await late.hear("grant")
    calm = await control.welcomed(hello(runner_id="own", node="own"))
    return task, await calm.hear("grant"), late, calm


async def test_an_overdue_task_goes_to_another_replica_under_the_next_fence(
    control: Control,
) -> None:
    task, grant, late, calm = await handed_over(control)

    cancel = await late.hear("cancel")
    await calm.say(progress(grant, 0), finish(grant))

    assert (grant.task_id, grant.fence, cancel.fence) == (task.id, 2, 1)
    done = await until(lambda: control.book.task(task.id), lambda t: t.state.is_final)
    assert done.state is TaskState.SUCCEEDED
    assert [a.outcome for a in await control.book.attempts(task.id)] == ["hedged", "succeeded"]
    assert done.num_lost == 0
    assert await control.book.ledger.store.read(problems) == []


async def test_what_the_late_one_still_sends_changes_nothing(control: Control) -> None:
    task, grant, _, calm = await handed_over(control)

    with pytest.raises(StaleLease):
        await control.book.append(task.id, 1, [JournalChunk(0, (666,), "late")])

    await calm.say(progress(grant, 0))
    chunks = await until(lambda: control.book.chunks(task.id))
    assert [chunk.token_ids for chunk in chunks] == [(0,)]


async def test_a_task_is_handed_over_once(control: Control) -> None:
    task, grant, _, _ = await handed_over(control)

    again = await control.book.hand_over(task.id, grant.fence, runner="x", replica="x")

    assert again is None
    assert (await control.book.task(task.id)).fence == grant.fence


async def test_a_task_that_has_begun_is_not_handed_over(control: Control) -> None:
    late = await rented(control)
    task = await submit(control)
    grant = await late.hear("grant")
    await late.say(progress(grant, 0))
    await late.hear("ack")

    assert await control.book.hand_over(task.id, 1, runner="x", replica="x") is None


async def test_a_lease_that_is_over_is_not_handed_over(control: Control) -> None:
    await rented(control)
    task = await submit(control)
    await until(lambda: control.book.task(task.id), lambda t: t.state is TaskState.LEASED)
    await control.book.cancel(task.id)

    assert await control.book.hand_over(task.id, 1, runner="x", replica="x") is None


@pytest.mark.parametrize(("provider", "interval_s"), [("rented", 0.0), ("calm", 0.2), ("", 0.0)])
async def test_output_is_gathered_where_nothing_is_ever_lost_only(
    control: Control, provider: str, interval_s: float
) -> None:
    stream = await rented(control, provider) if provider else await control.welcomed()
    await submit(control)

    assert (await stream.hear("grant")).journal_interval_s == pytest.approx(interval_s)
