"""What a runner sends for a lease is written in order, and the tail of an answer with its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest_asyncio

from scheduler.clock import ManualClock
from scheduler.dispatcher.link import Link
from scheduler.dispatcher.sessions import LeaseKey
from scheduler.rpc import plait_pb2 as pb
from scheduler.stores import sqlite
from scheduler.task import Task, TaskState
from scheduler.task_book import TaskBook
from scheduler.testing.tasks import MODEL, submission


class Desk:
    """A link to a runner that holds one lease."""

    def __init__(self, book: TaskBook, task: Task) -> None:
        self.book, self.task = book, task
        self.ended: list[LeaseKey] = []
        hello = pb.Hello(runner_id="r1", session_id="s1")
        self.link = Link(hello, book, lambda _, lease: self.ended.append(lease))

    def say(self, seq: int, *token_ids: int, text: str = "x") -> None:
        lease = {"task_id": self.task.id, "fence": self.task.fence}
        self.link.progressed(pb.Progress(**lease, seq=seq, token_ids=token_ids, text=text))

    def end(self, **body: object) -> None:
        task_id, fence = self.task.id, self.task.fence
        kind = pb.Release if "reason" in body else pb.Finish
        name = "release" if "reason" in body else "finish"
        message = kind(task_id=task_id, fence=fence, **body)
        self.link.finished(task_id, fence, pb.RunnerMessage(**{name: message}))

    async def acknowledged(self) -> pb.Ack:
        message = await self.link.next_message()
        assert message is not None
        return message.ack

    async def stored(self) -> tuple[TaskState, str]:
        task = await self.book.task(self.task.id)
        return task.state, "".join(c.text for c in await self.book.chunks(self.task.id))


@pytest_asyncio.fixture
async def desk() -> AsyncIterator[Desk]:
    store = sqlite.Store(sqlite.MEMORY)
    book = TaskBook(store, ManualClock(), lease_ttl_s=10.0)
    await book.submit(submission())
    (grant,) = await book.claim(MODEL, runner="r1", replica="demo__r0")
    yield Desk(book, grant.task)
    await store.close()


async def test_the_tail_of_an_answer_waits_for_its_end(desk: Desk) -> None:
    desk.say(0, 7, text="seven")
    desk.say(1, text=" tail")

    assert (await desk.acknowledged()).next_seq == 1
    assert await desk.stored() == (TaskState.LEASED, "seven")


async def test_an_end_is_written_together_with_the_tail_before_it(desk: Desk) -> None:
    desk.say(0, 7, text="seven")
    desk.say(1, text=" tail")
    await desk.acknowledged()
    desk.end(result_json="{}")

    ack = await desk.acknowledged()

    assert (ack.next_seq, ack.is_final) == (2, True)
    assert await desk.stored() == (TaskState.SUCCEEDED, "seven tail")
    assert desk.ended == [LeaseKey(desk.task.id, desk.task.fence)]


async def test_a_lease_given_back_leaves_its_tail_to_the_next_attempt(desk: Desk) -> None:
    desk.say(0, 7, text="seven")
    desk.say(1, text=" tail")
    desk.end(reason="the worker died")

    while not (await desk.acknowledged()).is_final:
        await asyncio.sleep(0)

    assert await desk.stored() == (TaskState.QUEUED, "seven")


async def test_a_chunk_missing_before_an_end_closes_the_stream(desk: Desk) -> None:
    desk.say(1, 8)
    desk.end(result_json="{}")

    assert await desk.link.next_message() is None
    assert await desk.stored() == (TaskState.LEASED, "")
