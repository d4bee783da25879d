"""A store whose rows can be damaged, a cluster that can be made up, and the checks of both."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

from scheduler.autoscaler.placement import Plan
from scheduler.bulk_book import BulkBook
from scheduler.clock import ManualClock, SteadyClock
from scheduler.cluster_view import NodeView
from scheduler.drift import Finding, Tally
from scheduler.ids import IdSource
from scheduler.moves import Rules
from scheduler.node_book import NodeBook
from scheduler.reconciliation.base import Parts
from scheduler.reconciliation.checks import all_checks
from scheduler.reconciliation.service import Reconciliation
from scheduler.stores import sqlite
from scheduler.stores._transaction import Transaction as SqlTransaction
from scheduler.stores.base import Store, Transaction
from scheduler.task import Grant, Task
from scheduler.task_book import TaskBook
from scheduler.testing.tasks import MODEL, chunk, problems, rules, submission

TTL_S = 10.0


class Machine(ManualClock):
    """A machine's clock, whose wall clock can be set without time going by."""

    def __init__(self) -> None:
        super().__init__()
        self.set_by_s = 0.0

    def now(self) -> float:
        return super().now() + self.set_by_s


class RunningMachine(Machine):
    """One on which time goes by, beside a store that has a clock of its own."""

    def now(self) -> float:
        return time.time() + self.set_by_s

    def monotonic(self) -> float:
        return time.monotonic()


@dataclass
class MadeUpCluster:
    """What a control plane would know of the runners."""

    shown: list[NodeView] = field(default_factory=list)
    held: dict[str, set[tuple[str, int]]] = field(default_factory=dict)
    silent: dict[str, float] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    #: Runners that were told again.
    told: list[str] = field(default_factory=list)

    def nodes(self) -> Sequence[NodeView]:
        return self.shown

    def leases(self, runner_id: str) -> set[tuple[str, int]]:
        return self.held.get(runner_id, set())

    def dismiss_silent(self) -> dict[str, float]:
        silent, self.silent = self.silent, {}
        return silent

    def forget_lost(self) -> list[str]:
        lost, self.lost = self.lost, []
        return lost

    def want_again(self, runner_id: str) -> None:
        self.told.append(runner_id)


class Drifting:
    """A control plane's checks, over a store and a cluster that a test has its way with."""

    def __init__(
        self, store: Store, *, retention_s: float = 0.0, machine: Machine | None = None
    ) -> None:
        self.store = store
        self.retention_s = retention_s
        self.rules: Rules = rules(lease_ttl_s=TTL_S)
        self.machine = machine or Machine()
        self.cluster = MadeUpCluster()
        self.plan = Plan({})
        self.start()

    def start(self) -> None:
        """As a control plane that begins."""
        self.clock = SteadyClock(self.machine)
        self.new_id = IdSource(self.clock)
        self.book = TaskBook(
            self.store, self.clock, lease_ttl_s=TTL_S, rules=self.rules, new_id=self.new_id
        )
        self.bulks = BulkBook(self.book.ledger, self.rules, self.book.new_id)
        parts = Parts(
            self.book,
            self.bulks,
            NodeBook(self.book.ledger, "plane"),
            self.clock,
            self.cluster,
            lambda: self.plan,
            retention_s=self.retention_s,
        )
        self.reconciliation = Reconciliation(all_checks(parts), self.clock)

    def advance(self, seconds: float) -> None:
        """Time goes by."""
        self.machine.advance(seconds)

    async def submit(self, tenant: str = "ann", **fields: Any) -> Task:
        return (await self.book.submit(submission(tenant, **fields)))[0]

    async def claim(self, runner: str = "r1", limit: int = 1) -> list[Grant]:
        return await self.book.claim(MODEL, runner=runner, replica="demo__r0", limit=limit)

    async def running(self, num_chunks: int = 0, **fields: Any) -> Task:
        """A task that is worked on and has written so many chunks."""
        task = await self.submit(**fields)
        (grant,) = await self.claim()
        if num_chunks:
            written = [chunk(seq) for seq in range(num_chunks)]
            await self.book.append(task.id, grant.task.fence, written)
        return await self.book.task(task.id)

    async def damage(self, statement: str, *values: Any) -> None:
        """What no transaction of ours does, and none knows of afterwards."""
        assert await self.try_damage(statement, *values), f"nothing to damage: {statement}"

    async def try_damage(self, statement: str, *values: Any) -> bool:
        """Damage what there is; whether there was anything, and it was not damaged so before."""

        def command(tx: Transaction) -> bool:
            sql = cast(SqlTransaction, tx)
            sql.flush()
            num_changed = sql._db.count(statement, *values)
            sql.forget()
            return num_changed > 0

        try:
            return await self.store.run(command)
        except sqlite3.IntegrityError:
            return False

    async def found(self) -> dict[str, list[Finding]]:
        """What a look at everything finds; checks that found nothing are left out."""
        found = await self.reconciliation.look(is_whole=True)
        return {name: findings for name, findings in found.items() if findings}

    def tally(self, name: str) -> Tally:
        return next(each for each in self.reconciliation.tallies() if each.name == name)

    async def problems(self) -> list[str]:
        """What does not add up in the store."""
        return await self.store.read(problems)


@asynccontextmanager
async def drifting(**options: Any) -> AsyncIterator[Drifting]:
    """Over an empty store in memory, after a first look."""
    store = sqlite.Store(sqlite.MEMORY)
    opened = Drifting(store, **options)
    await opened.reconciliation.look()
    try:
        yield opened
    finally:
        await store.close()


def node(runner: str = "r1", *replicas: Any, **fields: Any) -> NodeView:
    """A connected node."""
    return replace(NodeView(f"node of {runner}", runner, True, 0, replicas), **fields)
