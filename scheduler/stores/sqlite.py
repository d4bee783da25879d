"""The embedded store: one SQLite file, one process.

One thread writes. It takes every command that waits and runs them in one transaction, each inside a
savepoint, so that a command that raises undoes only itself; one commit, one flush to disk, and all
callers are answered. Queries run on a second connection, beside the writer. The journal mode is
WAL with ``synchronous=FULL``: what was answered survives a power cut.

A file belongs to one process; a lock file beside it names the owner. ``:memory:`` is a store that
dies with its process, for tests.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from scheduler.errors import StartupError, StoreUnavailable
from scheduler.stores import _migrations, base
from scheduler.stores._transaction import Transaction
from scheduler.stores._worker import Entry, Worker, fit_to_raise, refuse

T = TypeVar("T")

MEMORY = ":memory:"
#: Commands in one commit; more would make the first wait long for its answer.
MAX_BATCH = 256
#: Seconds to wait for a lock that some other program holds on the file.
BUSY_TIMEOUT_S = 5.0
#: Seconds that looking for damage may hold up the start; that is some 100 MB of a file.
CHECK_MOST_S = 2.0
#: Instructions of SQLite's between two looks at whether that time is over.
_CHECK_STEPS = 100_000


class Database:
    """A connection, as the statements use it."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._execute = connection.execute
        self._execute_many = connection.executemany

    def rows(self, statement: str, *values: Any) -> list[Any]:
        return self._execute(statement, values).fetchall()

    def row(self, statement: str, *values: Any) -> Any:
        return self._execute(statement, values).fetchone()

    def write(self, statement: str, *values: Any) -> None:
        self._execute(statement, values)

    def count(self, statement: str, *values: Any) -> int:
        return self._execute(statement, values).rowcount

    def write_many(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        self._execute_many(statement, rows)


class Store(base.Store):
    """A SQLite file, open until :meth:`close`.

    Raises:
        StartupError: the file is open in another process, cannot be opened, is no Plait store, or
            was written by a newer Plait.
    """

    is_shared = False

    def __init__(self, path: Path | str) -> None:
        self._path = str(path)
        self._lock = None if self._path == MEMORY else _lock(Path(self._path))
        self.num_commits = 0
        try:
            self._writer = connect(self._path)
            refuse_damaged(self._writer, self._path)
            self._reader = self._writer if self._lock is None else connect(self._path)
        except sqlite3.Error as error:
            self._unlock()
            raise StartupError(f"cannot open the store {self._path}: {error}") from error
        except BaseException:
            self._unlock()
            raise
        self._writing = Worker("store-writer", self._write, MAX_BATCH)
        self._reading = self._writing
        if self._lock is not None:
            self._reader.execute("PRAGMA query_only = ON")
            self._reading = Worker("store-reader", self._read, MAX_BATCH)
        self._write_transaction = Transaction(Database(self._writer))
        self._read_transaction = Transaction(Database(self._reader))

    async def run(
        self,
        command: Callable[[base.Transaction], T],
        then: Callable[[T | None, BaseException | None], None] | None = None,
    ) -> T:
        return cast(T, await self._writing.call(command, then))

    async def read(self, query: Callable[[base.Transaction], T]) -> T:
        return cast(T, await self._reading.call(query))

    async def now(self) -> float | None:
        """It is a file: the machine's clock is its clock."""
        return None

    def listen(self, listener: Callable[[base.News | None], None]) -> None:
        """Nobody else writes to the file, so there is never anything to hear."""

    async def close(self) -> None:
        await self._writing.close()
        await self._reading.close()
        self._writer.close()
        self._reader.close()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __repr__(self) -> str:
        return f"<Store {self._path} commits={self.num_commits}>"

    # -- in the writer's thread

    def _write(self, batch: Sequence[Entry]) -> None:
        waiting = list(batch)
        while waiting:
            done = self._commit(waiting)
            waiting = waiting[done:]

    def _commit(self, entries: Sequence[Entry]) -> int:
        """Run entries in one transaction; how many of them are answered, at least one."""
        try:
            if self._writer.in_transaction:
                self._roll_back()
            self._writer.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            refuse(entries, error)
            return len(entries)
        for done, entry in enumerate(entries, 1):
            self._run_one(entry)
            if not self._writer.in_transaction:
                # SQLite gave up the whole transaction (disk full, I/O error): nothing of it is
                # written. What has not run yet gets a transaction of its own.
                refuse(entries[:done], entry.error)
                return done
        try:
            self._write_transaction.flush()
            self._writer.execute("COMMIT")
            self.num_commits += 1
        except sqlite3.Error as error:
            self._roll_back()
            refuse(entries, error)
        return len(entries)

    def _run_one(self, entry: Entry) -> None:
        try:
            self._writer.execute("SAVEPOINT command")
            self._write_transaction.begin()
            entry.value = entry.function(self._write_transaction)
            self._writer.execute("RELEASE command")
        except BaseException as error:  # noqa: BLE001  # it is the caller's, and raised there
            entry.error = _translated(error)
            self._undo_one()

    def _undo_one(self) -> None:
        if not self._writer.in_transaction:
            self._write_transaction.forget()
            return
        try:
            self._writer.execute("ROLLBACK TO command")
            self._writer.execute("RELEASE command")
            self._write_transaction.undo()
        except sqlite3.Error:
            # Half a command must not be committed with the others; callers are told by _commit.
            self._roll_back()

    def _roll_back(self) -> None:
        # What is remembered is forgotten also where SQLite has ended the transaction by itself.
        self._write_transaction.forget()
        if self._writer.in_transaction:
            self._writer.execute("ROLLBACK")

    # -- in the reader's thread

    def _read(self, batch: Sequence[Entry]) -> None:
        try:
            if self._reader.in_transaction:
                self._reader.execute("ROLLBACK")
            self._reader.execute("BEGIN")
            self._read_transaction.forget()
        except sqlite3.Error as error:
            refuse(batch, error)
            return
        for entry in batch:
            try:
                entry.value = entry.function(self._read_transaction)
            except BaseException as error:  # noqa: BLE001  # it is the caller's, and raised there
                entry.error = _translated(error)
        if self._reader.in_transaction:
            self._reader.execute("ROLLBACK")


def _translated(error: BaseException) -> BaseException:
    """The error as callers know it: what the disk or the file did is not their fault."""
    if isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError:
        unavailable = StoreUnavailable(f"the store refused: {error}")
        unavailable.__cause__ = error
        return unavailable
    return fit_to_raise(error)


def connect(path: str) -> sqlite3.Connection:
    """A connection to the file, whose schema is brought up to date first.

    Raises:
        StartupError: a newer Plait wrote the file.
    """
    connection = sqlite3.connect(
        path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        _migrate(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def refuse_damaged(connection: sqlite3.Connection, path: str, most_s: float = CHECK_MOST_S) -> None:
    """Look for damaged pages, for a while: a file may be as large as its disk.

    Raises:
        StartupError: a page is damaged.
        sqlite3.DatabaseError: the file cannot be read at all.
    """
    until = time.monotonic() + most_s
    connection.set_progress_handler(lambda: time.monotonic() > until, _CHECK_STEPS)
    try:
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
            raise
        return
    finally:
        connection.set_progress_handler(None, 0)
    if found != "ok":
        raise StartupError(
            f"the store {path} is damaged: {found.splitlines()[-1]}; restore a backup of it"
        )


def _migrate(connection: sqlite3.Connection, path: str) -> None:
    """Bring the schema up to date, each step as one transaction."""
    version = _version(connection)
    if version == _migrations.HEAD:
        return
    if version is not None:
        _migrations.check_known(version, path)
    (written,) = connection.execute("PRAGMA user_version").fetchone()
    _migrations.check_known(f"{written:04}", path)
    # Before Alembic the version was noted here.
    before = f"{written:04}" if written and version is None else None

    import sqlalchemy as sa

    engine = sa.create_engine("sqlite://", creator=lambda: connection, poolclass=sa.StaticPool)
    # The driver begins no transaction by itself, and must not end ours before a step is complete.
    sa.event.listen(engine, "begin", lambda begun: begun.exec_driver_sql("BEGIN IMMEDIATE"))
    try:
        with engine.connect() as opened:
            _migrations.upgrade(opened, before)
    except sa.exc.SQLAlchemyError as error:
        raise StartupError(f"cannot bring the store {path} up to date: {error}") from error


def _version(connection: sqlite3.Connection) -> str | None:
    known = "SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'"
    if connection.execute(known).fetchone() is None:
        return None
    row = connection.execute(_migrations.VERSION_QUERY).fetchone()
    return None if row is None else str(row[0])


def _lock(path: Path) -> int:
    """Take the file for this process; the lock goes with the process, however it ends."""
    lock_path = path.with_name(path.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StartupError(f"cannot open the store {path}: {error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(lock)
        raise StartupError(
            f"the store {path} is open in process {owner}: stop it, or use another state folder"
        ) from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock
