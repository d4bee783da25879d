"""Deficit round robin (Shreedhar and Varghese, SIGCOMM 1995), with settlement.

The flows of a band stand in a ring. The first may send its head when its *deficit*, the service it
is owed, covers the head's estimate; otherwise it is owed a quantum more, by its weight, and goes to
the end. What a task costs beyond its estimate, or less, is taken from the deficit or given back.
What a flow was owed when it fell silent is forgotten; what it owes is kept.

A flow that stays busy is behind another by a quantum and a task of each at most, which is more than
with :mod:`scheduler.policies.virtual_time`; in exchange a decision looks at one flow only, mostly.

The place in the ring is kept as the flow's virtual time, and the last place given away as the
band's floor.
"""

from __future__ import annotations

from scheduler.flow import Band, Flow
from scheduler.policies import base
from scheduler.records import changed
from scheduler.stores.base import Transaction

#: What a flow of weight 1 is owed more in each round, in weighted tokens.
QUANTUM = 2048


class Policy(base.Policy):
    """A ring of flows."""

    def price(self, cost: int, weight_permille: int) -> int:
        return cost

    def charge(self, flow: Flow, price: int) -> Flow:
        return changed(flow, deficit=flow.deficit - price)

    def join(self, tx: Transaction, flow: Flow, band: Band) -> tuple[Flow, Band]:
        place = band.virtual_floor + 1
        joined = changed(flow, virtual_time=place, deficit=min(flow.deficit, 0))
        return joined, changed(band, virtual_floor=place)

    def next(self, tx: Transaction, band: Band) -> Flow | None:
        place = band.virtual_floor
        while (flow := tx.next_flow(band.model, band.priority_class)) is not None:
            if flow.deficit >= self._cost_of_head(tx, flow):
                break
            place += 1
            quantum = max(1, QUANTUM * tx.tenant(flow.tenant).weight_permille // 1000)
            tx.put_flow(changed(flow, virtual_time=place, deficit=flow.deficit + quantum))
        if place != band.virtual_floor:
            tx.put_band(changed(band, virtual_floor=place))
        return flow

    def served(self, tx: Transaction, flow: Flow) -> Flow:
        return flow

    def leave(self, flow: Flow, band: Band) -> Band:
        return band

    def _cost_of_head(self, tx: Transaction, flow: Flow) -> int:
        head = tx.head(flow.model, flow.priority_class, flow.tenant)
        assert head is not None, f"{flow} counts tasks that are not queued"
        return max(head.estimated_cost - head.settled_cost, 0)
