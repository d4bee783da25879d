"""Plait's task book on SQLite, every move synced before it is answered."""

from __future__ import annotations

from pathlib import Path

from benchmarks.queue.book import BookContender
from benchmarks.queue.contenders import base
from benchmarks.queue.contenders.base import LATENCY, RATES, Facts
from scheduler.stores.base import Store
from scheduler.stores.sqlite import Store as SqliteStore

FACTS = Facts(
    label="Plait, SQLite",
    promise="synced (synchronous=FULL) before it is answered; commits are shared",
    is_durable=True,
    together=f"{base.NUM_CALLERS} coroutines",
    worker="coroutines in the process that submits",
    recovery="see the runner's row",
    packages=("plait",),
    parts=frozenset({RATES, LATENCY}),
    is_embedded=True,
    more_slots=(64,),
)
serve = base.nothing


class Contender(BookContender):
    async def open_store(self) -> Store:
        return SqliteStore(Path(self.setup.folder) / "plait.db")
