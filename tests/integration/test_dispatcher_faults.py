"""The dispatcher when hellos cross, the store refuses, or the machine stands still."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio

from scheduler.cluster_view import Placed
from scheduler.errors import StoreUnavailable
from scheduler.rpc import plait_pb2 as pb
from scheduler.task import Task, TaskState
from scheduler.task_book import TaskBook
from tests.integration.dispatcher_system import (
    Control,
    control_plane,
    finish,
    heartbeat,
    hello,
    progress,
)
from tests.waiting import until


@pytest_asyncio.fixture
async def control(free_port: int) -> AsyncIterator[Control]:
    async with control_plane(free_port) as control:
        yield control


async def test_of_two_hellos_that_cross_the_newer_counts(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    renew, may_go_on = control.book.renew, asyncio.Event()
    calls: list[str] = []

    async def slow_for_the_first(runner: str, held: Any) -> Any:
        calls.append(runner)
        if len(calls) == 1:
            await may_go_on.wait()
        return await renew(runner, held)

    monkeypatch.setattr(control.book, "renew", slow_for_the_first)
    older = control.connect()
    await older.say(hello())
    await until(lambda: calls)
    newer = await control.welcomed()

    may_go_on.set()

    with pytest.raises(grpc.aio.AioRpcError, match="newer stream"):
        await older.hear("welcome")
    task = await control.submit()
    assert (await newer.hear("grant")).task_id == task.id


async def test_leases_outlive_a_control_plane_that_stood_still(control: Control) -> None:
    stream = await control.welcomed()
    task = await control.submit()
    grant = await stream.hear("grant")

    control.clock.slept_s = 3600

    await until(
        lambda: control.book.task(task.id),
        lambda seen: (seen.lease_expires_at or 0) >= control.clock.now(),
    )
    await stream.say(progress(grant, 0))
    assert (await stream.hear("ack")).next_seq == 1


async def test_a_replica_that_is_to_go_is_granted_nothing_before_it_says_so(
    control: Control,
) -> None:
    stream = await control.welcomed()
    control.dispatcher.want("one", [])
    await stream.hear("desired_replicas")
    await control.submit()

    # Nothing may have been granted when this is answered.
    await stream.say(heartbeat(("nobody", 7)))
    await stream.hears_nothing("grant", until="cancel")

    control.dispatcher.want("one", [Placed("demo__r0", "demo")])
    await stream.hear("grant")


async def test_a_task_nobody_announced_does_not_wait_for_ever(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = await control.welcomed()
    monkeypatch.setattr(control.book.ledger, "_queued", [])

    task = await control.submit()

    assert (await stream.hear("grant")).task_id == task.id


async def test_a_grant_that_cannot_be_released_does_not_keep_the_others(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [await control.submit(), await control.submit()]
    claim, release = control.book.claim, control.book.release
    refusals: list[str] = []

    async def claim_while_the_replica_leaves(*args: Any, **options: Any) -> Any:
        grants = await claim(*args, **options)
        control.dispatcher.want("one", [])
        return grants

    async def refuse_once(task_id: str, fence: int, reason: str) -> Task:
        if not refusals:
            refusals.append(task_id)
            raise StoreUnavailable("for the test")
        return await release(task_id, fence, reason)

    monkeypatch.setattr(control.book, "claim", claim_while_the_replica_leaves)
    monkeypatch.setattr(control.book, "release", refuse_once)
    await control.welcomed()

    await until(
        lambda: control.book.task(tasks[1].id),
        lambda task: task.attempt > 0 and task.state is TaskState.QUEUED,
    )
    assert refusals == [tasks[0].id]


@pytest.mark.parametrize("result", ["{", '{"text": "\\ud800"}'])
async def test_a_result_that_cannot_be_written_costs_the_attempt_and_not_the_stream(
    control: Control, result: str
) -> None:
    stream = await control.welcomed()
    task = await control.submit()
    grant = await stream.hear("grant")

    unusable = pb.Finish(task_id=task.id, fence=grant.fence, result_json=result)
    await stream.say(pb.RunnerMessage(finish=unusable))

    assert (await stream.hear("cancel")).fence == grant.fence
    assert (await stream.hear("grant")).fence == 2
    assert "could not be written down" in (await control.book.attempts(task.id))[0].reason


async def test_a_store_that_refuses_for_a_while_loses_nothing_of_a_task(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = await control.welcomed()
    task = await control.submit()
    grant = await stream.hear("grant")
    refused: list[str] = []

    for name in ("append", "succeed"):
        monkeypatch.setattr(control.book, name, _refusing_twice(control.book, name, refused))
    await stream.say(progress(grant, 0), progress(grant, 1), finish(grant))

    while not (await stream.hear("ack")).is_final:
        pass
    found = await control.book.task(task.id)
    assert (found.state, found.num_chunks) == (TaskState.SUCCEEDED, 2)
    assert refused.count("succeed") == 2


def _refusing_twice(book: TaskBook, name: str, refused: list[str]) -> Any:
    real = getattr(book, name)

    async def command(*args: Any) -> Any:
        if refused.count(name) < 2:
            refused.append(name)
            raise StoreUnavailable("for the test")
        return await real(*args)

    return command


async def test_a_runner_that_says_nonsense_is_logged_and_its_stream_ended(
    control: Control, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = await control.welcomed()

    await stream.say(heartbeat(state=99))

    await stream.end()
    assert "runner_not_understood" in capsys.readouterr().out


async def test_a_runner_that_falls_silent_is_granted_nothing_more(control: Control) -> None:
    stream = await control.welcomed()
    control.dispatcher._silent_after_s = 0.1

    await stream.end()

    assert [node.connected for node in control.dispatcher.nodes()] == [False]
    task = await control.submit()
    assert (await control.book.task(task.id)).state is TaskState.QUEUED


async def test_a_runner_that_speaks_now_and_then_keeps_its_stream(control: Control) -> None:
    stream = await control.welcomed()
    control.dispatcher._silent_after_s = 0.3

    began = time.monotonic()

    async def speak() -> float:
        await stream.say(heartbeat())
        return time.monotonic() - began

    await until(speak, lambda passed_s: passed_s > 0.6, every_s=0.05)

    assert [node.connected for node in control.dispatcher.nodes()] == [True]


async def test_a_runner_whose_clock_is_off_is_reported_and_keeps_its_lease(
    control: Control,
) -> None:
    stream = await control.welcomed()
    task = await control.submit()
    grant = await stream.hear("grant")
    beat = heartbeat((task.id, grant.fence))
    beat.heartbeat.sent_at = control.clock.now() - 3600

    await stream.say(beat)

    def is_open() -> bool:
        tallies = {each.name: each for each in control.reconciliation.tallies()}
        return [each.subject for each in tallies["clock_skew"].open] == ["runner one"]

    await until(is_open)
    await stream.say(progress(grant, 0))
    assert (await stream.hear("ack")).next_seq == 1
