"""Fair sharing by virtual time: start-time fair queueing with settlement.

Each flow carries a *virtual time*: the cost it has been served, divided by its weight. The flow
with the least goes next, so flows that stay busy receive service in proportion to their weights,
whatever the others send and however fast the servers are. A claim is charged with its estimate at
once, so that a burst cannot slip through before its cost is known, and settled with the measured
cost at the end. It is VTC (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024)
with weights, estimates and refunds.

Its bound (phi: weight, E: largest charge, D+ and D-: most that an attempt used beyond its charge or
gave back, K: tasks in flight of a flow). For flows f and g that take part at the same moment,

    v_f - v_g  <=  B_f  =  (E + K D+) / phi_f  +  sum over all flows h of K D- / phi_h

When f was served last it had the least virtual time; since then it has grown by that charge and by
what its tasks in flight used beyond theirs. The others' has fallen only by refunds of what was in
flight then, since what was charged later gives back no more than that; and whoever joins is lifted
to the least there is, which the sum covers. Before f is first served the lift says the same. So
over any time in which both take part

    |S_f / phi_f - S_g / phi_g|  <=  B_f + B_g

for the service S they are charged, and K times the largest cost more for what is really done of it.
Nothing is assumed of the number, speed or failures of servers, and nothing grows with time but
rounding: a thousandth of a token for each charge. With exact costs it is E / phi_f + E / phi_g, the
bound of start-time fair queueing; charging the prompt first, it is VTC's. Where flows may be
overtaken (by one that is ahead by no more than its next task costs), E counts twice.

It does not know tasks or the time.
"""

from __future__ import annotations

from scheduler.flow import Ahead, Band, Flow
from scheduler.policies import base
from scheduler.policies.base import Load
from scheduler.records import changed
from scheduler.stores.base import Transaction
from scheduler.task import Task

#: Units of virtual time in one weighted token at weight 1. Integers keep refunds exact; 64 bits
#: hold nine trillion weighted tokens of a tenant at the least weight.
SCALE = 1000


class Policy(base.Policy):
    """Weighted virtual time with lift."""

    keeps_slots = True

    def price(self, cost: int, weight_permille: int) -> int:
        return cost * 1000 * SCALE // weight_permille

    def charge(self, flow: Flow, price: int) -> Flow:
        return changed(flow, virtual_time=flow.virtual_time + price)

    def join(self, tx: Transaction, flow: Flow, band: Band) -> tuple[Flow, Band]:
        # Silence earns nothing: otherwise a tenant away for an hour would return with an hour of
        # exclusive service owed to it. Debts are kept: the flow may stand above the others.
        least = tx.next_flow(flow.model, flow.priority_class)
        base_time = band.virtual_floor if least is None else least.virtual_time
        return changed(flow, virtual_time=max(flow.virtual_time, base_time)), band

    def next(self, tx: Transaction, band: Band) -> Flow | None:
        return tx.next_flow(band.model, band.priority_class)

    def served(self, tx: Transaction, flow: Flow) -> Flow:
        return flow

    def leave(self, flow: Flow, band: Band) -> Band:
        return changed(band, virtual_floor=max(band.virtual_floor, flow.virtual_time))

    def may_overtake(self, tx: Transaction, front: Flow, flow: Flow) -> bool:
        head = tx.head(flow.model, flow.priority_class, flow.tenant)
        assert head is not None, f"{flow} counts tasks that are not queued"
        cost = max(head.estimated_cost - head.settled_cost, 0)
        price = self.price(cost, tx.tenant(flow.tenant).weight_permille)
        return flow.virtual_time <= front.virtual_time + price

    def bound(self, load: Load) -> dict[str, float] | None:
        phi = {name: weight / 1000 for name, weight in load.weights_permille.items()}
        refunds = sum(load.num_in_flight * load.refund / each for each in phi.values())
        charge = load.charge * (2 if load.has_overtaking else 1)
        most = charge + load.num_in_flight * load.excess
        return {name: most / each + refunds for name, each in phi.items()}

    def before(self, tx: Transaction, task: Task, flow: Flow, band: Band, cost: int) -> Ahead:
        # The task goes when its flow has been charged for what is before it; until then every other
        # flow is served for as long as it stands below that.
        stands_at = flow.virtual_time
        if not flow.is_active:
            stands_at = self.join(tx, flow, band)[0].virtual_time
        price = self.price(cost, tx.tenant(flow.tenant).weight_permille)
        return tx.waiting_below(flow, stands_at + price)
