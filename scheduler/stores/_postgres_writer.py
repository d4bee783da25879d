"""Commits commands on PostgreSQL, a batch at a time, beside other control planes.

One lock for all control planes is held for the length of a batch: whoever has it sees all flows as
they are and is alone in changing them, so claims are as fair as those of one process. Locks on the
flows themselves would let two claims pass each other, and two batches wait for each other for ever.

A batch is first run swiftly, with nothing between its commands and nothing waited for but what they
read. When anything goes wrong with a write, nobody knows with whose: the batch is undone and run
again carefully, with a savepoint before each command and a wait after it. A command that raises
before it has written anything disturbs nobody.

The batches of all control planes are counted, so that one that finds nothing counted since its own
last may go on with what it remembers of flows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import psycopg

from scheduler.errors import StoreUnavailable
from scheduler.stores._postgres_link import Link
from scheduler.stores._postgres_news import CHANNEL, encode, merged
from scheduler.stores._postgres_wire import Database, Wire
from scheduler.stores._transaction import Transaction
from scheduler.stores._worker import Entry, fit_to_raise, refuse
from scheduler.stores.base import News

#: "Plait" in ASCII.
LOCK_ID: Final = 0x506C616974
_LOCK: Final = f"SELECT pg_advisory_xact_lock({LOCK_ID})"
_BATCHES: Final = "SELECT num_committed FROM batches"
_COUNT_BATCH: Final = "UPDATE batches SET num_committed = num_committed + 1"
_NOTIFY: Final = f"SELECT pg_notify('{CHANNEL}', ?)"


class Writer:
    """Runs commands; lives in the writer's thread."""

    def __init__(self, link: Link, name: str) -> None:
        """``name`` is what its news are signed with."""
        self._link, self._name = link, name
        self._session: _Session | None = None
        self.num_commits = 0

    def write(self, batch: Sequence[Entry]) -> None:
        """Answer all of a batch."""
        error = self._try(batch)
        if error is not None and self._session is not None and self._session.is_undone:
            # The connection broke before the end of the batch, and the batch went with it.
            error = self._try(batch)
        if error is not None:
            refuse(batch, error)

    def _try(self, batch: Sequence[Entry]) -> Exception | None:
        """Run a batch; why the server refused, if it did."""
        try:
            session = self._open()
        except StoreUnavailable as error:
            self._session = None
            return error
        try:
            _commit(session, batch)
        except psycopg.Error as error:
            session.is_undone = not session.is_in_doubt and not session.wire.is_open
            self._link.close()
            return error
        self.num_commits += 1
        return None

    def _open(self) -> _Session:
        wire = self._link.wire()
        if self._session is None or self._session.wire is not wire:
            self._session = _Session(wire, self._name)
        return self._session


class _Session:
    """What goes with one connection: the open transaction, and what is remembered of the tables."""

    def __init__(self, wire: Wire, name: str) -> None:
        self.wire, self._name = wire, name
        self.database = Database(wire)
        self.news: list[News] = []
        self.transaction = Transaction(self.database, self.news.append)
        #: How many batches there were when what is remembered was true; None: it was not.
        self._num_batches: int | None = None
        #: Whether the server was asked to commit and has not answered.
        self.is_in_doubt = False
        #: Whether the last batch was lost with its connection, and nothing of it was written.
        self.is_undone = False

    def begin(self) -> None:
        """Wait for the lock."""
        self.is_in_doubt = False
        self.news.clear()
        self.database.num_writes = 0
        self.wire.send("BEGIN ISOLATION LEVEL READ COMMITTED")
        self.wire.send(_LOCK)
        # A statement of its own: it sees what was committed before the lock was given.
        ((num_batches,),) = self.wire.fetch(_BATCHES)
        if num_batches != self._num_batches:
            self.transaction.forget()
        self._num_batches = num_batches

    def commit(self) -> None:
        self.transaction.flush()
        if self.news:
            self.wire.send(_NOTIFY, [encode(self._name, merged(self.news))])
        if self.database.num_writes:
            self.wire.send(_COUNT_BATCH)
        self.is_in_doubt = True
        self.wire.send("COMMIT")
        self.wire.sync()
        self.is_in_doubt = False
        if self.database.num_writes:
            assert self._num_batches is not None
            self._num_batches += 1

    def roll_back(self) -> None:
        self._num_batches = None
        self.wire.roll_back()

    def undo_command(self, num_news: int) -> None:
        """Forget what a command changed; the database has done so."""
        del self.news[num_news:]
        self.transaction.undo()


class _Disturbed(Exception):
    """A command failed after it had written: the batch cannot go on."""


def _commit(session: _Session, batch: Sequence[Entry]) -> None:
    """Run a batch in one transaction.

    Raises:
        psycopg.Error: the server refused, or is gone.
    """
    session.begin()
    try:
        for entry in batch:
            _run_swiftly(session, entry)
        session.commit()
        return
    except (psycopg.Error, _Disturbed):
        if not session.wire.is_open:
            raise
        session.roll_back()
    session.begin()
    for entry in batch:
        _run_carefully(session, entry)
    session.commit()


def _run_swiftly(session: _Session, entry: Entry) -> None:
    num_writes, num_news = session.database.num_writes, len(session.news)
    session.transaction.begin()
    entry.error = None
    try:
        entry.value = entry.function(session.transaction)
    except psycopg.Error:
        raise
    except BaseException as error:
        if session.database.num_writes != num_writes:
            raise _Disturbed from error
        session.undo_command(num_news)
        entry.error = translated(error)


def _run_carefully(session: _Session, entry: Entry) -> None:
    num_news = len(session.news)
    session.transaction.begin()
    session.wire.send("SAVEPOINT command")
    entry.error = None
    try:
        entry.value = entry.function(session.transaction)
        session.transaction.flush()
        session.wire.sync()
    except psycopg.errors.ReadOnlySqlTransaction:
        # No longer the server that writes: nothing of this batch's can be done here.
        raise
    except BaseException as error:  # noqa: BLE001  # it is the caller's, and raised there
        session.wire.clear()
        session.wire.send("ROLLBACK TO command")
        session.undo_command(num_news)
        entry.error = translated(error)
    session.wire.send("RELEASE command")


def translated(error: BaseException) -> BaseException:
    """The error as callers know it: what the server or the network did is not their fault."""
    if isinstance(error, psycopg.OperationalError | psycopg.InternalError | psycopg.InterfaceError):
        unavailable = StoreUnavailable(f"the store refused: {error}")
        unavailable.__cause__ = error
        return unavailable
    return fit_to_raise(error)
