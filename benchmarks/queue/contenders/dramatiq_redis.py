"""dramatiq over Redis."""

from __future__ import annotations

import time
from collections.abc import Sequence

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from benchmarks.queue import servers
from benchmarks.queue.contenders import base
from benchmarks.queue.contenders.base import Facts, Job, Setup

FACTS = Facts(
    label="dramatiq, Redis",
    promise=servers.REDIS_PROMISE,
    is_durable=False,
    together="a group",
    worker="threads",
    recovery="requeued by chance once the worker has been silent for 60 s",
    packages=("dramatiq", "redis"),
)
serve = servers.redis


class Contender(base.Blocking):
    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._broker = RedisBroker(url=setup.address)
        dramatiq.set_broker(self._broker)
        self._actor = dramatiq.actor(self.task(), actor_name="run", broker=self._broker)

    def submit_one(self, job: Job) -> None:
        self._actor.send(job.index, job.seconds)

    def submit_together(self, jobs: Sequence[Job]) -> None:
        messages = [self._actor.message(job.index, job.seconds) for job in jobs]
        dramatiq.group(messages).run()

    def work(self) -> None:
        dramatiq.Worker(self._broker, worker_threads=self.setup.slots).start()
        while True:
            time.sleep(1.0)

    def close(self) -> None:
        self._broker.close()
