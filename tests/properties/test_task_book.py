"""The promises about a task, against a model, over every order of moves and restarts.

1. An accepted task reaches exactly one final state, and stays in it.
2. At most one live lease per task; fencing tokens grow; a write with an old one changes nothing.
3. The journal has no gap and no repeat, and what was read once is read again the same.

The book is on a file in a real folder; a restart closes it and opens it again.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
)

from scheduler.clock import ManualClock
from scheduler.errors import InvalidTransition, NotResumable, StaleLease
from scheduler.moves import Backoff
from scheduler.stores.sqlite import Store
from scheduler.task import JournalChunk, TaskError, TaskState
from scheduler.task_book import TaskBook
from scheduler.testing.tasks import MODEL, chunk, problems, submission

T = TypeVar("T")
TTL = 10.0
MAX_ATTEMPTS = 3

Lease = tuple[str, int]


@dataclass
class Expected:
    """What the model knows of a task."""

    state: TaskState = TaskState.QUEUED
    fence: int = 0
    chunks: list[JournalChunk] = field(default_factory=list)
    expires_at: float = 0.0
    deadline_at: float | None = None
    result: Any = None
    resume: str = "close"
    num_lost: int = 0
    due_at: float = 0.0
    is_dead: bool = False

    @property
    def can_go_on(self) -> bool:
        return self.resume != "none" or not self.chunks


class Tasks(RuleBasedStateMachine):
    tasks = Bundle("tasks")
    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.loop = asyncio.new_event_loop()
        self.clock = ManualClock()
        self.known: dict[str, Expected] = {}
        self.numbers = count()
        self.open()

    def open(self) -> None:
        self.store = Store(Path(self.folder.name) / "plait.db")
        self.book = TaskBook(
            self.store,
            self.clock,
            lease_ttl_s=TTL,
            max_attempts=MAX_ATTEMPTS,
            # Drawn ids would make the order of claims, and so a failure, impossible to repeat.
            new_id=lambda: f"t{next(self.numbers):04}",
        )

    def do(self, awaitable: Awaitable[T]) -> T:
        return self.loop.run_until_complete(awaitable)

    def teardown(self) -> None:
        self.do(self.store.close())
        self.loop.close()
        self.folder.cleanup()

    def is_live(self, lease: Lease) -> bool:
        task = self.known[lease[0]]
        return task.state is TaskState.LEASED and task.fence == lease[1]

    def lose(self, task_id: str) -> None:
        task = self.known[task_id]
        task.num_lost += 1
        pause_s = Backoff().pause_s(task_id, task.num_lost)
        task.due_at = self.clock.now() + pause_s
        if not task.can_go_on:
            task.state = TaskState.FAILED
        elif task.num_lost >= MAX_ATTEMPTS:
            task.state, task.is_dead = TaskState.FAILED, True
        else:
            task.state = TaskState.DELAYED if pause_s else TaskState.QUEUED

    # -- moves

    @rule(
        target=tasks,
        tenant=st.sampled_from(["ann", "bob"]),
        key=st.sampled_from([None, "k"]),
        patience_s=st.sampled_from([None, None, 5.0, 20.0]),
        resume=st.sampled_from(["close", "none"]),
    )
    def submit(self, tenant: str, key: str | None, patience_s: float | None, resume: str) -> str:
        deadline_at = None if patience_s is None else self.clock.now() + patience_s
        sent = submission(tenant, idempotency_key=key, deadline_at=deadline_at, resume=resume)
        task, is_new = self.do(self.book.submit(sent))
        assert is_new == (task.id not in self.known)
        assert is_new or key is not None
        self.known.setdefault(task.id, Expected(deadline_at=deadline_at, resume=resume))
        return task.id

    @rule(target=leases, limit=st.integers(1, 3))
    def claim(self, limit: int) -> Any:
        grants = self.do(self.book.claim(MODEL, runner="r1", replica="demo__r0", limit=limit))
        num_queued = sum(task.state is TaskState.QUEUED for task in self.known.values())
        assert len(grants) == min(limit, num_queued)
        for grant in grants:
            task = self.known[grant.task.id]
            assert task.state is TaskState.QUEUED
            assert grant.task.fence == task.fence + 1
            tokens = tuple(t for c in task.chunks for t in c.token_ids)
            assert grant.generated == ((tokens,) if tokens else ())
            task.state, task.fence = TaskState.LEASED, grant.task.fence
            task.expires_at = self.clock.now() + TTL
        return multiple(*((grant.task.id, grant.task.fence) for grant in grants))

    @rule(lease=leases, behind=st.integers(0, 2), ahead=st.integers(0, 3))
    def append(self, lease: Lease, behind: int, ahead: int) -> None:
        """Send the last few chunks again, and some new ones."""
        task = self.known[lease[0]]
        start = max(0, len(task.chunks) - behind)
        new = [chunk(seq) for seq in range(len(task.chunks), len(task.chunks) + ahead)]
        write = self.book.append(*lease, task.chunks[start:] + new)
        if not self.is_live(lease):
            self.refused(write)
            return
        assert self.do(write) == len(task.chunks) + ahead
        task.chunks += new

    @rule(lease=leases)
    def append_with_a_gap(self, lease: Lease) -> None:
        if self.is_live(lease):
            with pytest.raises(ValueError, match="is next"):
                self.do(self.book.append(*lease, [chunk(len(self.known[lease[0]].chunks) + 1)]))

    @rule(lease=leases, result=st.integers())
    def succeed(self, lease: Lease, result: int) -> None:
        task = self.known[lease[0]]
        if self.is_live(lease):
            task.state, task.result = TaskState.SUCCEEDED, {"n": result}
        elif task.state is not TaskState.SUCCEEDED or task.fence != lease[1]:
            self.refused(self.book.succeed(*lease, {"n": result}))
            return
        assert self.do(self.book.succeed(*lease, {"n": result})).result == task.result

    @rule(lease=leases)
    def fail(self, lease: Lease) -> None:
        if self.is_live(lease):
            self.do(self.book.fail(*lease, TaskError(422, "no")))
            self.known[lease[0]].state = TaskState.FAILED

    @rule(lease=leases)
    def release(self, lease: Lease) -> None:
        if self.is_live(lease):
            self.do(self.book.release(*lease, "worker died"))
            self.lose(lease[0])

    @rule(task_id=tasks)
    def cancel(self, task_id: str) -> None:
        self.do(self.book.cancel(task_id))
        task = self.known[task_id]
        if not task.state.is_final:
            task.state = TaskState.CANCELLED

    @rule(task_id=tasks)
    def pause(self, task_id: str) -> None:
        task = self.known[task_id]
        if task.state.is_final:
            with pytest.raises(InvalidTransition):
                self.do(self.book.pause(task_id))
        elif task.state is TaskState.LEASED and not task.can_go_on:
            with pytest.raises(NotResumable):
                self.do(self.book.pause(task_id))
        else:
            self.do(self.book.pause(task_id))
            task.state = TaskState.PAUSED

    @rule(task_id=tasks)
    def resume(self, task_id: str) -> None:
        task = self.known[task_id]
        if task.state.is_final:
            with pytest.raises(InvalidTransition):
                self.do(self.book.resume(task_id))
            return
        self.do(self.book.resume(task_id))
        if task.state is TaskState.PAUSED:
            task.state = TaskState.QUEUED

    @rule(task_id=tasks)
    def requeue(self, task_id: str) -> None:
        task = self.known[task_id]
        if task.state.is_final and not task.is_dead:
            with pytest.raises(InvalidTransition):
                self.do(self.book.requeue(task_id))
            return
        self.do(self.book.requeue(task_id))
        if task.is_dead:
            task.state, task.is_dead, task.num_lost = TaskState.QUEUED, False, 0

    @rule(lease=consumes(leases))
    def write_with_an_older_fence(self, lease: Lease) -> None:
        task_id, fence = lease
        for write in (
            self.book.append(task_id, fence - 1, [chunk(len(self.known[task_id].chunks))]),
            self.book.succeed(task_id, fence - 1, {}),
            self.book.fail(task_id, fence - 1, TaskError(500, "no")),
            self.book.release(task_id, fence - 1, "late"),
        ):
            self.refused(write)

    @rule(lease=leases)
    def renew(self, lease: Lease) -> None:
        lost = self.do(self.book.renew("r1", [lease]))
        assert lost == ([] if self.is_live(lease) else [lease])
        if self.is_live(lease):
            self.known[lease[0]].expires_at = self.clock.now() + TTL

    @rule(seconds=st.sampled_from([1.0, 6.0, 11.0]))
    def wait_and_sweep(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.do(self.book.expire_overdue())
        self.do(self.book.lose_expired())
        self.do(self.book.end_pauses())
        now = self.clock.now()
        for task_id, task in self.known.items():
            if task.state.is_final:
                continue
            if task.deadline_at is not None and task.deadline_at <= now:
                task.state = TaskState.EXPIRED
            elif task.state is TaskState.LEASED and task.expires_at <= now:
                self.lose(task_id)
            elif task.state is TaskState.DELAYED and task.due_at <= now:
                task.state = TaskState.QUEUED

    @rule()
    def restart(self) -> None:
        self.do(self.store.close())
        self.open()
        assert self.do(self.book.renew_all()) == sum(
            task.state is TaskState.LEASED for task in self.known.values()
        )
        for task in self.known.values():
            task.expires_at = self.clock.now() + TTL

    def refused(self, write: Awaitable[Any]) -> None:
        with pytest.raises(StaleLease):
            self.do(write)

    # -- what must hold after every move

    @precondition(lambda self: self.known)
    @invariant()
    def the_book_agrees_with_the_model(self) -> None:
        for task_id, expected in self.known.items():
            task = self.do(self.book.task(task_id))
            assert (task.state, task.fence) == (expected.state, expected.fence)
            assert task.result == expected.result
            assert self.do(self.book.chunks(task_id)) == expected.chunks

    @invariant()
    def the_store_adds_up(self) -> None:
        assert self.do(self.store.read(problems)) == []


TestTasks = Tasks.TestCase
TestTasks.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
