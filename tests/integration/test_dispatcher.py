"""The control plane's side of a runner's stream, spoken to message by message."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio

from scheduler.cluster_view import Placed
from scheduler.rpc import plait_pb2 as pb
from scheduler.task import Task, TaskState
from tests.integration.dispatcher_system import (
    Control,
    Stream,
    control_plane,
    finish,
    heartbeat,
    hello,
    progress,
)


@pytest_asyncio.fixture
async def control(free_port: int) -> AsyncIterator[Control]:
    async with control_plane(free_port) as control:
        yield control


async def test_a_runner_that_does_not_say_hello_is_refused(control: Control) -> None:
    stream = control.connect()
    await stream.say(heartbeat())

    with pytest.raises(grpc.aio.AioRpcError, match="first message is a hello"):
        await stream.hear("welcome")


async def test_a_runner_of_another_protocol_is_refused(control: Control) -> None:
    stream = control.connect()
    await stream.say(hello(protocol=2))

    with pytest.raises(grpc.aio.AioRpcError, match="speaks protocol 2"):
        await stream.hear("welcome")


async def test_a_task_that_waited_is_granted_after_the_welcome(control: Control) -> None:
    task = await control.submit()

    grant = await (await control.welcomed()).hear("grant")

    assert (grant.task_id, grant.fence, grant.replica) == (task.id, 1, "demo__r0")


async def test_a_task_is_granted_as_it_is_submitted(control: Control) -> None:
    stream = await control.welcomed()

    task = await control.submit()

    assert (await stream.hear("grant")).task_id == task.id


async def test_no_more_is_granted_than_there_is_room(control: Control) -> None:
    stream = await control.welcomed(hello(capacity=1))
    first, second = await control.submit(), await control.submit()
    grant = await stream.hear("grant")
    assert grant.task_id == first.id

    await stream.say(progress(grant, 0))
    await stream.hears_nothing("grant", until="ack")
    await stream.say(finish(grant))

    assert (await stream.hear("grant")).task_id == second.id


async def one_busy_of_two(control: Control) -> tuple[Stream, pb.Grant, Task]:
    """Bob was there a moment ago; ann has one slot, for two tokens, and waits for the other."""
    stream = await control.welcomed(hello(capacity=2))
    await control.submit("bob")
    await stream.say(finish(await stream.hear("grant")))
    await control.submit(estimated_cost=4)
    grant = await stream.hear("grant")
    waiting = await control.submit()
    await stream.say(progress(grant, 0))
    await stream.hears_nothing("grant", until="ack")
    return stream, grant, waiting


async def test_a_slot_kept_beside_one_that_is_busy_is_given_to_it_after_two_seconds(
    control: Control,
) -> None:
    stream, _, waiting = await one_busy_of_two(control)

    control.clock.ahead_s = 2.5

    assert (await stream.hear("grant")).task_id == waiting.id


async def test_a_slot_that_is_kept_is_given_away_when_another_is_about_to_be_free(
    control: Control,
) -> None:
    stream, grant, waiting = await one_busy_of_two(control)

    await stream.say(progress(grant, 1))

    assert (await stream.hear("grant")).task_id == waiting.id


async def test_a_slot_that_is_kept_is_for_who_comes(control: Control) -> None:
    stream, _, _ = await one_busy_of_two(control)

    task = await control.submit("bob")

    assert (await stream.hear("grant")).task_id == task.id


async def test_a_replica_that_stops_being_ready_is_granted_nothing(control: Control) -> None:
    stream = await control.welcomed()
    await control.submit()
    grant = await stream.hear("grant")
    await stream.say(
        heartbeat((grant.task_id, grant.fence), state=pb.Replica.STARTING),
        pb.RunnerMessage(release=pb.Release(task_id=grant.task_id, fence=grant.fence)),
    )

    assert (await stream.hear("ack")).is_final
    assert (await control.book.task(grant.task_id)).state is TaskState.QUEUED
    await stream.say(heartbeat())
    assert (await stream.hear("grant")).fence == 2


async def test_progress_is_acknowledged_when_it_is_on_disk(control: Control) -> None:
    stream = await control.welcomed()
    await control.submit()
    grant = await stream.hear("grant")

    await stream.say(progress(grant, 0), progress(grant, 1), progress(grant, 2))

    while (await stream.hear("ack")).next_seq < 3:
        pass
    assert (await control.book.task(grant.task_id)).num_chunks == 3


async def test_a_repeated_finish_is_acknowledged_again(control: Control) -> None:
    stream = await control.welcomed()
    await control.submit()
    grant = await stream.hear("grant")

    await stream.say(finish(grant))
    assert (await stream.hear("ack")).is_final
    await stream.say(finish(grant))

    assert (await stream.hear("ack")).is_final


async def test_progress_with_a_stale_fence_changes_nothing_and_is_cancelled(
    control: Control,
) -> None:
    stream = await control.welcomed()
    task = await control.submit()
    grant = await stream.hear("grant")
    await control.book.release(task.id, grant.fence, "for the test")
    newer = await stream.hear("grant")

    await stream.say(progress(grant, 0))

    cancel = await stream.hear("cancel")
    assert (cancel.task_id, cancel.fence) == (task.id, grant.fence)
    found = await control.book.task(task.id)
    assert (found.num_chunks, found.fence, found.state) == (0, newer.fence, TaskState.LEASED)


async def test_a_cancelled_task_is_taken_from_its_holder(control: Control) -> None:
    stream = await control.welcomed()
    task = await control.submit()
    grant = await stream.hear("grant")

    await control.book.cancel(task.id)

    assert (await stream.hear("cancel")).fence == grant.fence


async def test_a_lease_that_was_given_away_is_cancelled_at_a_heartbeat(control: Control) -> None:
    stream = await control.welcomed()

    await stream.say(heartbeat(("nobody", 7)))

    assert (await stream.hear("cancel")).task_id == "nobody"


async def test_a_gap_in_the_chunks_ends_the_stream(control: Control) -> None:
    stream = await control.welcomed()
    await control.submit()
    grant = await stream.hear("grant")

    await stream.say(progress(grant, 5))

    await stream.end()


async def test_a_hello_keeps_the_leases_it_names(control: Control) -> None:
    stream = await control.welcomed()
    task = await control.submit()
    grant = await stream.hear("grant")
    await stream.say(progress(grant, 0))
    await stream.hear("ack")

    again = control.connect()
    await again.say(hello((task.id, grant.fence)))

    [kept] = (await again.hear("welcome")).kept
    assert (kept.task_id, kept.fence, kept.next_seq) == (task.id, grant.fence, 1)


async def test_a_hello_frees_the_leases_it_does_not_name(control: Control) -> None:
    stream = await control.welcomed()
    task = await control.submit()
    await stream.hear("grant")

    again = await control.welcomed(hello(session_id="second"))

    assert (await again.hear("grant")).fence == 2
    assert [a.outcome for a in await control.book.attempts(task.id)] == ["lost", "running"]


async def test_a_newer_stream_of_a_runner_ends_the_older(control: Control) -> None:
    older = await control.welcomed()

    newer = await control.welcomed()

    await older.end()
    task = await control.submit()
    assert (await newer.hear("grant")).task_id == task.id


async def test_what_a_runner_is_to_run_is_said_again_after_a_hello(control: Control) -> None:
    control.dispatcher.want("one", [Placed("demo__r0", "demo")])

    stream = await control.welcomed()

    wanted = await stream.hear("desired_replicas")
    assert [r.name for r in wanted.replicas] == ["demo__r0"]
