"""taskiq over a Redis stream with a consumer group."""

from __future__ import annotations

from taskiq.api import run_receiver_task
from taskiq_redis import RedisStreamBroker

from benchmarks.queue import servers
from benchmarks.queue.contenders import base
from benchmarks.queue.contenders.base import Facts, Job, Setup

FACTS = Facts(
    label="taskiq, Redis stream",
    promise=servers.REDIS_PROMISE,
    is_durable=False,
    together=f"{base.NUM_CALLERS} coroutines",
    worker="coroutines",
    recovery="claimed by another worker after the idle timeout, 600 s",
    packages=("taskiq", "taskiq-redis", "redis"),
)
serve = servers.redis


class Contender(base.Awaiting):
    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._broker = RedisStreamBroker(setup.address)
        self._task = self._broker.task(task_name="run")(self.task())
        # Also makes the consumer group, which sees only what is submitted after that.
        self.wait_for(self._broker.startup())

    async def submit_one(self, job: Job) -> None:
        await self._task.kiq(job.index, job.seconds)

    def work(self) -> None:
        self.wait_for(run_receiver_task(self._broker, max_async_tasks=self.setup.slots))

    def close(self) -> None:
        self.wait_for(self._broker.shutdown())
