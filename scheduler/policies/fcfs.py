"""First come, first served: the flow whose head was accepted first goes next.

It shares nothing: a tenant that floods the queue is served first for as long as its flood lasts. So
it has no bound: however much is allowed, a flood that is larger keeps another flow, which takes
part all the while, waiting for longer. Nobody waits for ever: what is accepted later goes later.
It is here to compare the others with, and for a service that has one tenant.

The moment its head was accepted, in microseconds, is kept as a flow's virtual time.
"""

from __future__ import annotations

from scheduler.flow import Ahead, Band, Flow
from scheduler.policies import base
from scheduler.policies.base import Load
from scheduler.records import changed
from scheduler.stores.base import Transaction
from scheduler.task import Task

#: Tasks that are counted to say what is before one.
MAX_COUNTED = 10_000


class Policy(base.Policy):
    """Order of acceptance."""

    keeps_slots = False

    def price(self, cost: int, weight_permille: int) -> int:
        return 0

    def charge(self, flow: Flow, price: int) -> Flow:
        return flow

    def join(self, tx: Transaction, flow: Flow, band: Band) -> tuple[Flow, Band]:
        return self.served(tx, flow), band

    def next(self, tx: Transaction, band: Band) -> Flow | None:
        return tx.next_flow(band.model, band.priority_class)

    def served(self, tx: Transaction, flow: Flow) -> Flow:
        head = tx.head(flow.model, flow.priority_class, flow.tenant)
        assert head is not None, f"{flow} counts tasks that are not queued"
        return changed(flow, virtual_time=round(head.accepted_at * 1e6))

    def leave(self, flow: Flow, band: Band) -> Band:
        return band

    def may_overtake(self, tx: Transaction, front: Flow, flow: Flow) -> bool:
        return False

    def bound(self, load: Load) -> dict[str, float] | None:
        return None

    def before(self, tx: Transaction, task: Task, flow: Flow, band: Band, cost: int) -> Ahead:
        return tx.queued_before(task, MAX_COUNTED)
