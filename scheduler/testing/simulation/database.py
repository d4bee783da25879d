"""The disk: one database in memory, which refuses, and forgets to say that it has written.

Control planes share it as they would share PostgreSQL; one alone keeps what it has read, as with
SQLite. Triggers report every row that is written to the witness, so that what it judges is what is
on disk, whatever the code that wrote it believes; it hears of it when the command is committed.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Callable
from typing import TypeVar, cast

from scheduler.errors import PlaitError, StoreUnavailable
from scheduler.stores import base, sqlite
from scheduler.stores._transaction import Transaction
from scheduler.testing.simulation.faults import Faults
from scheduler.testing.simulation.loop import Clock, Process
from scheduler.testing.simulation.witness import Witness
from scheduler.testing.tasks import empty_database

T = TypeVar("T")

#: Seconds that a command or a query takes.
FASTEST_S, SLOWEST_S = 0.0005, 0.01
#: The most that a slow command takes.
SLOW_S = 8.0
#: Seconds until another control plane hears of what was written.
NEWS_S = 0.05

#: Columns of a task that the witness is told.
TASK_COLUMNS = (
    "id", "tenant", "priority_class", "state", "fence", "runner", "num_chunks", "num_tokens",
    "charged_cost", "num_lost", "is_dead", "estimated_cost", "prompt_cost", "cost_per_token",
    "finished_at", "deadline_at", "resume", "result", "error",
)  # fmt: skip
_TRIGGERS = f"""
CREATE TEMP TRIGGER task_added AFTER INSERT ON main.tasks BEGIN
  SELECT witness('task', {", ".join(f"NEW.{name}" for name in TASK_COLUMNS)}); END;
CREATE TEMP TRIGGER task_moved AFTER UPDATE ON main.tasks BEGIN
  SELECT witness('task', {", ".join(f"NEW.{name}" for name in TASK_COLUMNS)}); END;
CREATE TEMP TRIGGER task_removed AFTER DELETE ON main.tasks BEGIN
  SELECT witness('removed', OLD.id); END;
CREATE TEMP TRIGGER document_added AFTER INSERT ON main.documents BEGIN
  SELECT witness('document', NEW.task_id, NEW.document); END;
CREATE TEMP TRIGGER chunk_added AFTER INSERT ON main.journal BEGIN
  SELECT witness('chunk', NEW.task_id, NEW.seq, NEW.answer, NEW.token_ids, NEW.text, NEW.logprobs);
END;
CREATE TEMP TRIGGER chunk_changed AFTER UPDATE ON main.journal BEGIN
  SELECT witness('removed', OLD.task_id); END;
CREATE TEMP TRIGGER chunk_removed AFTER DELETE ON main.journal BEGIN
  SELECT witness('removed', OLD.task_id); END;
CREATE TEMP TRIGGER attempt_added AFTER INSERT ON main.attempts BEGIN
  SELECT witness('attempt', NEW.task_id, NEW.fence, NEW.outcome, NEW.reason); END;
CREATE TEMP TRIGGER flow_added AFTER INSERT ON main.flows BEGIN
  SELECT witness('flow', NEW.priority_class, NEW.tenant, NEW.virtual_time, NEW.num_queued,
    NEW.num_leased, NEW.is_held); END;
CREATE TEMP TRIGGER flow_moved AFTER UPDATE ON main.flows BEGIN
  SELECT witness('flow', NEW.priority_class, NEW.tenant, NEW.virtual_time, NEW.num_queued,
    NEW.num_leased, NEW.is_held); END;
CREATE TEMP TRIGGER band_added AFTER INSERT ON main.bands BEGIN
  SELECT witness('band', NEW.priority_class, NEW.virtual_time, NEW.num_active); END;
CREATE TEMP TRIGGER band_moved AFTER UPDATE ON main.bands BEGIN
  SELECT witness('band', NEW.priority_class, NEW.virtual_time, NEW.num_active); END;
CREATE TEMP TRIGGER tenant_added AFTER INSERT ON main.tenants BEGIN
  SELECT witness('tenant', NEW.tenant, NEW.weight_permille); END;
CREATE TEMP TRIGGER tenant_changed AFTER UPDATE ON main.tenants BEGIN
  SELECT witness('tenant', NEW.tenant, NEW.weight_permille); END;
"""


class Disk:
    """What survives every crash."""

    def __init__(self, witness: Witness, faults: Faults, *, is_shared: bool) -> None:
        self.witness, self.faults, self.is_shared = witness, faults, is_shared
        self.stores: list[Store] = []
        #: Virtual time until which everything is refused.
        self.refuses_until = 0.0
        self._connection = sqlite3.connect(sqlite.MEMORY, isolation_level=None)
        self._connection.deserialize(empty_database())
        self._written: list[tuple[object, ...]] = []
        self._connection.create_function("witness", -1, self._note)
        self._connection.executescript(_TRIGGERS)

    def transaction(self) -> Transaction:
        """One that has read nothing yet."""
        return Transaction(sqlite.Database(self._connection))

    def run(self, tx: Transaction, command: Callable[[base.Transaction], T], *, fails: bool) -> T:
        """Run a command; one that raises, or ``fails``, has no effect."""
        if self.is_shared:
            tx.forget()
        self._connection.execute("SAVEPOINT command")
        tx.begin()
        try:
            value = command(tx)
            tx.flush()
            if fails:
                raise StoreUnavailable("the store refused: it is broken at the moment")
        except BaseException:
            self._connection.execute("ROLLBACK TO command")
            self._connection.execute("RELEASE command")
            self._written.clear()
            tx.undo()
            raise
        self._connection.execute("RELEASE command")
        written, self._written = self._written, []
        self.witness.committed(written)
        return value

    def close(self) -> None:
        self._connection.close()

    def _note(self, *row: object) -> None:
        self._written.append(row)


class Store(base.Store):
    """The disk as one control plane reaches it, command after command."""

    def __init__(self, disk: Disk, process: Process, rng: random.Random) -> None:
        self._disk, self._process, self._rng = disk, process, rng
        self.is_shared = disk.is_shared
        self._told: list[base.News] = []
        self._transaction = disk.transaction()
        self._transaction._tell = self._told.append
        self._reading = disk.transaction()
        self._turn = asyncio.Lock()
        self._listeners: list[Callable[[base.News | None], None]] = []
        disk.stores.append(self)

    async def run(
        self,
        command: Callable[[base.Transaction], T],
        then: Callable[[T | None, BaseException | None], None] | None = None,
    ) -> T:
        # As part of the process and not of the caller: one that goes away does not take it back.
        return await asyncio.shield(self._process.start(self._commit(command, then)))

    async def read(self, query: Callable[[base.Transaction], T]) -> T:
        await self._pause()
        self._refuse_if_broken()
        self._reading.forget()
        value = query(self._reading)
        await self._pause()
        return value

    async def now(self) -> float | None:
        """One that is shared is on a machine of its own, whose clock is right."""
        if not self.is_shared:
            return None
        return await self.read(lambda _: Clock.EPOCH + asyncio.get_running_loop().time())

    def listen(self, listener: Callable[[base.News | None], None]) -> None:
        self._listeners.append(listener)

    async def close(self) -> None:
        self._disk.stores.remove(self)

    async def _commit(
        self,
        command: Callable[[base.Transaction], T],
        then: Callable[[T | None, BaseException | None], None] | None,
    ) -> T:
        async with self._turn:
            await self._pause()
            if self._disk.faults.strike("store was slow"):
                await asyncio.sleep(self._rng.uniform(0.0, SLOW_S))
            value, error = None, None
            try:
                value = await self._run(command)
            except Exception as raised:  # noqa: BLE001  # it is the caller's, and raised there
                error = raised
            await self._pause()
            if then is not None:
                then(value, error)
            if error is not None:
                raise error
            return cast(T, value)

    async def _run(self, command: Callable[[base.Transaction], T]) -> T:
        self._refuse_if_broken()
        faults = self._disk.faults
        if faults.strike("crashed before a command"):
            await self._die()
        fails = faults.strike("store refused")
        self._told.clear()
        try:
            value = self._disk.run(self._transaction, command, fails=fails)
        except (PlaitError, ValueError):
            raise
        except Exception as error:
            self._disk.witness.report(f"a command raised {error!r}")
            raise
        self._tell_others()
        if faults.strike("crashed after a command"):
            await self._die()
        if faults.strike("store wrote and lost its answer"):
            raise StoreUnavailable("the store refused: the connection broke")
        return value

    def _refuse_if_broken(self) -> None:
        if asyncio.get_running_loop().time() < self._disk.refuses_until:
            raise StoreUnavailable("the store refused: it is away")

    async def _pause(self) -> None:
        await asyncio.sleep(self._rng.uniform(FASTEST_S, SLOWEST_S))
        if not self._process.is_alive:
            raise asyncio.CancelledError

    async def _die(self) -> None:
        self._process.kill()
        await asyncio.sleep(0)
        raise asyncio.CancelledError

    def _tell_others(self) -> None:
        told, self._told[:] = list(self._told), []
        for store in self._disk.stores:
            if store is not self:
                for news in told:
                    store._hear(news, is_lost=self._disk.faults.strike("news lost"))

    def _hear(self, news: base.News, *, is_lost: bool) -> None:
        """Lost news are noticed as a connection that broke, somewhat later."""
        loop = asyncio.get_running_loop()
        for listener in self._listeners:
            delay_s, heard = (20 * NEWS_S, None) if is_lost else (NEWS_S, news)
            loop.call_later(
                delay_s,
                cast(Callable[[object], None], listener),
                heard,
                context=self._process.context,
            )
