"""A tenant: it sends tasks until they are accepted, follows some, and thinks better of others.

Calls are repeated under the same idempotency key until an answer comes, at whichever control plane
is up. What it is told it remembers, and holds against everything it is told later.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from scheduler.errors import (
    InvalidTransition,
    NotResumable,
    QuotaExceeded,
    StoreUnavailable,
    TaskNotFound,
)
from scheduler.task import Submission, Task, TaskEvent
from scheduler.task_book import TaskBook
from scheduler.testing import output
from scheduler.testing.simulation.control import ControlPlane
from scheduler.testing.simulation.loop import Gone, Process
from scheduler.testing.simulation.network import Network, Pipe
from scheduler.testing.simulation.scenario import MODEL, Tenant
from scheduler.testing.simulation.witness import Witness

T = TypeVar("T")

RETRY_S = 1.0


class Client:
    """One tenant's program."""

    def __init__(
        self,
        tenant: Tenant,
        process: Process,
        network: Network,
        planes: Callable[[], Sequence[ControlPlane]],
        witness: Witness,
        now: Callable[[], float],
        rng: random.Random,
        meddling: float,
    ) -> None:
        self.tenant, self.process = tenant, process
        #: Ids by number, of the tasks of which it knows that they are accepted.
        self.accepted: dict[int, str] = {}
        #: Tasks that it has paused, or wanted to.
        self.paused: dict[str, None] = {}
        self.num_refused = 0
        self._network, self._planes, self._witness = network, planes, witness
        self._now, self._rng, self._meddling = now, rng, meddling
        self.sending = process.start(self._send_all())

    async def resume_all(self) -> None:
        """Nothing waits for this tenant any longer."""
        for task_id in list(self.paused):
            await self._insist(partial(_resume, task_id=task_id, tenant=self.tenant.name))

    # -- sending

    async def _send_all(self) -> None:
        for number in range(self.tenant.num_tasks):
            if self.tenant.interval_s:
                await asyncio.sleep(self._rng.expovariate(1 / self.tenant.interval_s))
            self.process.start(self._live_through(number))
        await asyncio.sleep(0)

    async def _live_through(self, number: int) -> None:
        """One task from its submission on."""
        submission = self._submission(number)
        task = await self._insist(lambda book: _submit(book, submission))
        if task is None:
            self.num_refused += 1
            return
        self._remember(number, task.id)
        if self._rng.random() < 0.3:
            again = await self._insist(lambda book: _submit(book, submission))
            if again is not None:
                self._remember(number, again.id)
        if self._rng.random() < 0.5:
            self.process.start(self._follow(task))
        if self._rng.random() < self._meddling:
            await self._meddle(task.id)

    def _remember(self, number: int, task_id: str) -> None:
        known = self.accepted.setdefault(number, task_id)
        if known != task_id:
            self._witness.report(f"promise 1: one key stands for {known} and {task_id}")

    def _submission(self, number: int) -> Submission:
        rng, tenant = self._rng, self.tenant
        count = rng.randint(1, tenant.max_tokens)
        document: dict[str, Any] = {"seed": rng.getrandbits(32), "max_new_tokens": count}
        if rng.random() < 0.2:
            document["n"] = 2
        if rng.random() < 0.5:
            document["has_tail"] = True
        if rng.random() < 0.05:
            document["fails_after"] = rng.randint(0, count - 1)
        cost = 5 + 2 * count * output.num_answers(document)
        is_hurried = rng.random() < self._meddling / 3
        return Submission(
            tenant.name,
            MODEL,
            document,
            estimated_cost=max(1, round(cost * rng.choice(tenant.estimates))),
            prompt_cost=5,
            priority=rng.choice([0, 0, 5]),
            priority_class=rng.choice(tenant.priority_classes),
            idempotency_key=f"{tenant.name} {number}",
            deadline_at=self._now() + rng.uniform(1, 20) if is_hurried else None,
            resume="none" if rng.random() < 0.1 else "exact",
        )

    # -- changing its mind

    async def _meddle(self, task_id: str) -> None:
        await asyncio.sleep(self._rng.uniform(0, 10))
        name = self.tenant.name
        match self._rng.choice(["cancel", "pause", "pause", "requeue"]):
            case "cancel":
                self._witness.asked.add(("cancel", task_id))
                await self._insist(lambda book: book.cancel(task_id, name, "not wanted"))
            case "pause":
                self._witness.asked.add(("pause", task_id))
                self.paused[task_id] = None
                await self._insist(lambda book: book.pause(task_id, name))
                await asyncio.sleep(self._rng.uniform(0, 10))
                await self._insist(lambda book: book.resume(task_id, name))
            case "requeue":
                self._witness.asked.add(("requeue", task_id))
                await asyncio.sleep(self._rng.uniform(5, 20))
                await self._insist(lambda book: book.requeue(task_id, name))

    # -- reading

    async def _follow(self, task: Task) -> None:
        """Read the output to its end, from a cursor on whenever the stream breaks."""
        cursor, texts = 0, [""] * output.num_answers(task.document)
        while True:
            event: TaskEvent | None = None
            async for event in self._watch(task.id, cursor):
                if event.chunk is not None:
                    if event.chunk.seq != cursor:
                        said = f"after {cursor - 1} came {event.chunk.seq}"
                        self._witness.report(f"promise 3: {task.id} read wrongly: {said}")
                    texts[event.chunk.index] += event.chunk.text
                    cursor = event.cursor
            if event is not None and event.kind == "end" and event.task is not None:
                self._check_read(event.task, texts)
                return
            await asyncio.sleep(RETRY_S)

    def _check_read(self, task: Task, texts: list[str]) -> None:
        account = self._witness.accounts[task.id]
        if texts != account.texts:
            self._witness.report(f"promise 3: {task.id} was read as {texts}, not {account.texts}")

    async def _watch(self, task_id: str, cursor: int) -> Any:
        planes = self._planes()
        if not planes:
            return
        plane = self._rng.choice(list(planes))
        pipe: Pipe[TaskEvent] = Pipe(self._network)
        serving = plane.process.start(self._serve(plane.book, task_id, cursor, pipe))
        serving.add_done_callback(lambda _: pipe.end())
        async for event in pipe:
            yield event
            if self._network.breaks_watcher():
                serving.cancel()
                return

    async def _serve(
        self, book: TaskBook, task_id: str, cursor: int, pipe: Pipe[TaskEvent]
    ) -> None:
        async for event in book.watch(task_id, cursor):
            pipe.put(event)

    # -- calling

    async def _insist(self, ask: Callable[[TaskBook], Awaitable[T]]) -> T | None:
        """Ask until it is answered; None: it was refused for good."""
        while True:
            if planes := self._planes():
                plane = self._rng.choice(list(planes))
                try:
                    return await self._network.call(plane.process, partial(ask, plane.book))
                except (Gone, StoreUnavailable, QuotaExceeded):
                    pass
                except (InvalidTransition, NotResumable):
                    return None
                except TaskNotFound as error:
                    self._witness.report(f"promise 4: {error}")
                    return None
            await asyncio.sleep(RETRY_S)


async def _resume(book: TaskBook, task_id: str, tenant: str) -> Task:
    return await book.resume(task_id, tenant)


async def _submit(book: TaskBook, submission: Submission) -> Task:
    task, _ = await book.submit(submission)
    return task
