"""Plait's task book as a contender, over any store: it submits and works in one process.

It claims as the dispatcher does: as many tasks as it has free slots, in one command, whenever one
is queued or a slot has become free. Each task is then run and finished by itself. Only the public
calls of the book are used.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod

from benchmarks.queue.contenders import base
from benchmarks.queue.contenders.base import Job, Setup
from scheduler import interpreter
from scheduler.clock import SystemClock
from scheduler.stores.base import Store
from scheduler.task import Grant
from scheduler.task_book import TaskBook
from scheduler.testing.tasks import MODEL, submission

NUM_TENANTS = 10


class BookContender(base.Awaiting):
    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.wait_for(self._open())

    @abstractmethod
    async def open_store(self) -> Store:
        """The store, new and empty."""

    async def submit_one(self, job: Job) -> None:
        document = {"prompt": "def", "index": job.index, "seconds": job.seconds}
        await self._book.submit(submission(f"tenant-{job.index % NUM_TENANTS}", document=document))

    def work(self) -> None:
        self.wait_for(self._work())

    def close(self) -> None:
        self.wait_for(self._store.close())

    async def _open(self) -> None:
        interpreter.settle()
        self._store = await self.open_store()
        self._book = TaskBook(self._store, SystemClock(), lease_ttl_s=60)
        self._do = self.task()
        self._num_free = self.setup.slots
        self._woken = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        self._book.ledger.on_queued(lambda _: self._woken.set())

    async def _work(self) -> None:
        self._woken.set()
        while True:
            await self._woken.wait()
            self._woken.clear()
            await self._fill()

    async def _fill(self) -> None:
        """Give every free slot a task, as far as there are any."""
        while self._num_free:
            grants = await self._book.claim(
                MODEL, runner="bench", replica=f"{MODEL}__r0", limit=self._num_free
            )
            if not grants:
                return
            self._num_free -= len(grants)
            for grant in grants:
                running = asyncio.create_task(self._run(grant))
                self._running.add(running)
                running.add_done_callback(self._running.discard)

    async def _run(self, grant: Grant) -> None:
        task = grant.task
        await self._do(task.document["index"], task.document["seconds"])
        await self._book.succeed(task.id, task.fence, {"reason": "eos"})
        self._num_free += 1
        self._woken.set()
