"""The shared store: a PostgreSQL database, any number of control planes.

One thread writes, a batch of commands in one transaction (``_postgres_writer``); another answers
queries (``_postgres_reader``); what other control planes tell is heard on a third connection
(``_postgres_news``). Commits are synchronous: what was answered survives a power cut of the server.

A connection that breaks is made again by itself. What had not been committed by then is run again
or refused; when the answer to a commit got lost, callers hear that the outcome is unknown.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import TypeVar, cast

from scheduler.clock import Clock, SystemClock
from scheduler.stores import base
from scheduler.stores._postgres_link import Link, name_of
from scheduler.stores._postgres_news import Ear
from scheduler.stores._postgres_reader import Reader
from scheduler.stores._postgres_schema import migrate
from scheduler.stores._postgres_writer import Writer
from scheduler.stores._transaction import Transaction
from scheduler.stores._worker import Worker

T = TypeVar("T")

#: Commands in one commit; more would make the first wait long for its answer, and others' batches.
MAX_BATCH = 256
#: Not ``now()``, which is when the transaction began.
_NOW = "SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)"


class Store(base.Store):
    """A PostgreSQL database, open until :meth:`close`.

    Raises:
        StartupError: the URL cannot be understood, the server cannot be reached or refuses, or the
            database was written by a newer Plait.
    """

    is_shared = True

    def __init__(self, url: str, clock: Clock | None = None) -> None:
        """``url``: ``postgresql://user:password@host:port/database``."""
        self._name = name_of(url)
        migrate(url)
        clock, own = clock or SystemClock(), secrets.token_hex(4)
        self._links = Link(url, clock), Link(url, clock)
        self._writer, self._reader = Writer(self._links[0], own), Reader(self._links[1])
        self._writing = Worker("store-writer", self._writer.write, MAX_BATCH)
        self._reading = Worker("store-reader", self._reader.read, MAX_BATCH)
        self._ear = Ear(url, own)

    @property
    def num_commits(self) -> int:
        return self._writer.num_commits

    async def run(
        self,
        command: Callable[[base.Transaction], T],
        then: Callable[[T | None, BaseException | None], None] | None = None,
    ) -> T:
        return cast(T, await self._writing.call(command, then))

    async def read(self, query: Callable[[base.Transaction], T]) -> T:
        return cast(T, await self._reading.call(query))

    async def now(self) -> float | None:
        def query(tx: base.Transaction) -> float:
            (now,) = cast(Transaction, tx).fetch_one(_NOW)
            return float(now)

        return await self.read(query)

    def listen(self, listener: Callable[[base.News | None], None]) -> None:
        self._ear.add(listener)

    async def close(self) -> None:
        await self._ear.close()
        await self._writing.close()
        await self._reading.close()
        for link in self._links:
            link.close()

    def __repr__(self) -> str:
        return f"<Store {self._name} commits={self.num_commits}>"
