"""huey over SQLite, with every commit synced.

A worker deletes a task's row when it takes it, so that what a killed worker had begun is lost.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from huey import SqliteHuey
from huey.consumer import Consumer

from benchmarks.queue.contenders import base
from benchmarks.queue.contenders.base import Facts, Job, Setup

_NUM_THREADS = 8
FACTS = Facts(
    label="huey, SQLite synced",
    promise="a synced commit for each task; lost from the moment a worker takes it",
    is_durable=True,
    together=f"{_NUM_THREADS} threads",
    worker="threads",
    recovery="nothing: its row was deleted when it was taken",
    packages=("huey",),
    more_slots=(64,),
)
serve = base.nothing


class Contender(base.Blocking):
    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._huey = SqliteHuey(filename=str(Path(setup.folder) / "huey.db"), fsync=True)
        self._task = self._huey.task(name="run")(self.task())

    def submit_one(self, job: Job) -> None:
        self._task(job.index, job.seconds)

    def submit_together(self, jobs: Sequence[Job]) -> None:
        threads = [
            threading.Thread(target=self.submit, args=(jobs[number::_NUM_THREADS],))
            for number in range(_NUM_THREADS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def work(self) -> None:
        Consumer(self._huey, workers=self.setup.slots, periodic=False).run()
