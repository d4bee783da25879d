"""A control plane: the real task book and dispatcher, in a process that may die at any moment."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any, cast

import grpc

from scheduler.autoscaler.placement import Plan
from scheduler.bulk_book import BulkBook
from scheduler.clock import SteadyClock
from scheduler.dispatcher.service import Dispatcher
from scheduler.ids import IdSource
from scheduler.moves import Rules
from scheduler.node_book import NodeBook
from scheduler.operations import Operations
from scheduler.reconciliation.base import Parts
from scheduler.reconciliation.checks import all_checks
from scheduler.reconciliation.service import Reconciliation
from scheduler.task_book import TaskBook
from scheduler.testing.simulation.database import Disk, Store
from scheduler.testing.simulation.loop import Clock, Gone, Process
from scheduler.testing.simulation.network import Stream

LEASE_TTL_S, HEARTBEAT_S = 6.0, 1.5
#: Checks of rows that only come apart outside of transactions.
DAMAGE = {
    "flows_that_miscount",
    "tasks_without_request",
    "results_without_task",
    "journals_without_owner",
    "journals_without_chunks",
}


class _Context:
    """What the dispatcher is given of a gRPC call."""

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        raise Gone(f"{code.name}: {details}")


class ControlPlane:
    """One incarnation."""

    def __init__(
        self, process: Process, disk: Disk, rules: Rules, machine: Clock, rng: random.Random
    ) -> None:
        clock = SteadyClock(machine)
        self.process = process
        store = Store(disk, process, rng)
        self._store = store
        new_id = IdSource(clock, rng.getrandbits)
        self.book = TaskBook(
            store, clock, lease_ttl_s=rules.lease_ttl_s, rules=rules, new_id=new_id
        )
        self.operations = Operations(self.book.ledger, rules.queue)
        nodes = NodeBook(self.book.ledger, f"{rng.getrandbits(32):08x}")
        self._dispatcher = Dispatcher(
            self.book, nodes, clock, lease_ttl_s=LEASE_TTL_S, heartbeat_s=HEARTBEAT_S
        )
        bulks = BulkBook(self.book.ledger, rules, new_id)
        parts = Parts(
            self.book,
            bulks,
            nodes,
            clock,
            self._dispatcher,
            lambda: Plan({}),
            heartbeat_s=HEARTBEAT_S,
        )
        self._reconciliation = Reconciliation(all_checks(parts), clock)
        process.start(self._reconciliation.run())
        process.start(self._dispatcher.run())

    async def close(self) -> None:
        """Tidy up after the process has died."""
        await self._store.close()

    def damage(self) -> list[str]:
        """What checks have found that no fault of processes, networks and clocks may bring about,
        and checks that failed."""
        return [
            f"{tally.name} found {tally.num_found} and failed {tally.num_failed} times"
            for tally in self._reconciliation.tallies()
            if tally.num_failed or (tally.num_found and tally.name in DAMAGE)
        ]

    def accept(self, stream: Stream) -> None:
        """A runner has opened a stream."""
        self.process.start(self._serve(stream))

    async def _serve(self, stream: Stream) -> None:
        told: AsyncIterator[Any] = self._dispatcher.Connect(aiter(stream.up), cast(Any, _Context()))
        try:
            async for message in told:
                if self.process.is_alive:
                    stream.down.put(message)
        except Gone:
            pass  # as told by abort: the stream ends, and the runner tries again
        finally:
            stream.close()


def crash(plane: ControlPlane, streams: list[Stream], rng: random.Random) -> None:
    """Kill its process; what it had sent arrives or not."""
    plane.process.kill()
    for stream in streams:
        stream.tear(rng)


async def pause_until(moment: float) -> None:
    """Wait for a moment of virtual time."""
    await asyncio.sleep(max(0.0, moment - asyncio.get_running_loop().time()))
