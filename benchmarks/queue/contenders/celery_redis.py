"""celery over Redis, with late acknowledgements and a pool of threads."""

from __future__ import annotations

from collections.abc import Sequence

from celery import Celery, group

from benchmarks.queue import servers
from benchmarks.queue.contenders import base
from benchmarks.queue.contenders.base import Facts, Job, Setup

FACTS = Facts(
    label="celery, Redis",
    promise=servers.REDIS_PROMISE,
    is_durable=False,
    together="a group",
    worker="pool of threads, acks late",
    recovery="redelivered after the visibility timeout, 3600 s",
    packages=("celery", "kombu", "redis"),
    more_slots=(64,),
)
serve = servers.redis


class Contender(base.Blocking):
    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._app = Celery("bench", broker=setup.address)
        self._app.conf.update(
            task_acks_late=True, task_ignore_result=True, broker_connection_retry_on_startup=True
        )
        self._task = self._app.task(name="run")(self.task())

    def submit_one(self, job: Job) -> None:
        self._task.delay(job.index, job.seconds)

    def submit_together(self, jobs: Sequence[Job]) -> None:
        group(self._task.s(job.index, job.seconds) for job in jobs).apply_async()

    def work(self) -> None:
        pool = ["--pool=threads", f"--concurrency={self.setup.slots}"]
        self._app.worker_main(["worker", "--loglevel=WARNING", *pool])
