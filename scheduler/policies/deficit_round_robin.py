"""Deficit round robin (Shreedhar and Varghese, SIGCOMM 1995), with settlement.

The flows of a band stand in a ring. The first may send its head when its *deficit*, the service it
is owed, covers the head's estimate; otherwise it is owed a quantum more, by its weight, and goes to
the end. What a task costs beyond its estimate, or less, is taken from the deficit or given back.
What a flow was owed when it fell silent is forgotten; what it owes is kept.

Its bound, for flows f and g that both take part over some time (phi: weight, Q: quantum of weight
1, E: largest charge, D+ and D-: most that an attempt used beyond its charge or gave back, K: tasks
in flight of a flow). Each is given a quantum once a round, so the numbers n of their quanta differ
by 1 at most, and what f is charged is what it was owed less what it still is: S_f = n_f Q phi_f -
(d_f after - d_f before). A deficit is at least -K D+, since nothing is sent unless it is covered
and only what is in flight then can exceed its charge; and at most E + Q phi_f + K D-, since f goes
to the end owed less than E, gets a quantum, and until its turn comes only what is in flight is
given back. So (with K D+ and K D- as *settlement*)

    |S_f / phi_f - S_g / phi_g|  <=  B_f + B_g,   B_f = 3/2 Q + (E + K (D+ + D-)) / phi_f

which is Shreedhar and Varghese's 3 Q with E = Q and exact costs. (A quantum that was given before
the flow's weight was lowered counts by the old weight: then Q times what it was lowered by, plus
Q / 2.) It is more than with
:mod:`scheduler.policies.virtual_time` when tasks are smaller than a quantum; in exchange a decision
looks at one flow only, mostly.

The place in the ring is kept as the flow's virtual time, and the last place given away as the
band's floor.
"""

from __future__ import annotations

from scheduler.flow import Ahead, Band, Flow
from scheduler.policies import base
from scheduler.policies.base import Load
from scheduler.records import changed
from scheduler.stores.base import Transaction
from scheduler.task import Task

#: What a flow of weight 1 is owed more in each round, in weighted tokens.
QUANTUM = 2048
#: Units of deficit in a weighted token. A quantum is then exact at every weight; rounded, it would
#: take a share from light flows in every round.
SCALE = 1000


class Policy(base.Policy):
    """A ring of flows."""

    keeps_slots = True

    def price(self, cost: int, weight_permille: int) -> int:
        return cost * SCALE

    def charge(self, flow: Flow, price: int) -> Flow:
        return changed(flow, deficit=flow.deficit - price)

    def join(self, tx: Transaction, flow: Flow, band: Band) -> tuple[Flow, Band]:
        place = band.virtual_floor + 1
        joined = changed(flow, virtual_time=place, deficit=min(flow.deficit, 0))
        return joined, changed(band, virtual_floor=place)

    def next(self, tx: Transaction, band: Band) -> Flow | None:
        place, passed = band.virtual_floor, set[str]()
        while (flow := tx.next_flow(band.model, band.priority_class)) is not None:
            if _missing(tx, flow) <= 0:
                break
            if flow.tenant in passed:
                _skip_rounds(tx, band)
                passed.clear()
                continue
            passed.add(flow.tenant)
            place += 1
            quantum = _quantum(tx, flow)
            tx.put_flow(changed(flow, virtual_time=place, deficit=flow.deficit + quantum))
        if place != band.virtual_floor:
            tx.put_band(changed(band, virtual_floor=place))
        return flow

    def served(self, tx: Transaction, flow: Flow) -> Flow:
        return flow

    def leave(self, flow: Flow, band: Band) -> Band:
        return band

    def may_overtake(self, tx: Transaction, front: Flow, flow: Flow) -> bool:
        return _missing(tx, flow) <= 0

    def bound(self, load: Load) -> dict[str, float] | None:
        settlement = load.num_in_flight * (load.excess + load.refund)
        return {
            name: (load.lowered + 0.5) * QUANTUM + 1000 * (load.charge + settlement) / weight
            for name, weight in load.weights_permille.items()
        }

    def before(self, tx: Transaction, task: Task, flow: Flow, band: Band, cost: int) -> Ahead:
        # As many quanta as it takes until all before it and the task itself are covered. With each
        # the flow goes to the end of the ring and all others have a turn; who stands before it has
        # one more.
        needed = (cost + _waiting_cost(task)) * SCALE - (flow.deficit if flow.is_active else 0)
        rounds = max(0, -(-needed // _quantum(tx, flow)))
        num_tasks = total = num_flows = 0
        for other in _active(tx, band):
            if other.tenant != flow.tenant:
                turns = rounds if _place(other) < _place(flow) else rounds - 1
                sent = _sent(tx, other, turns)
                num_tasks, num_flows = num_tasks + sent, num_flows + (sent > 0)
                total += sent * other.queued_cost // other.num_queued
        return Ahead(num_tasks, total, num_flows)


def _skip_rounds(tx: Transaction, band: Band) -> None:
    """Nobody could send in a whole round: give all at once what the rounds would give them in which
    nobody can either. Otherwise one long task of a light tenant would take thousands of rounds."""
    flows = _active(tx, band)
    rounds = min(-(-_missing(tx, flow) // _quantum(tx, flow)) for flow in flows) - 1
    for flow in flows:
        if rounds > 0:
            tx.put_flow(changed(flow, deficit=flow.deficit + rounds * _quantum(tx, flow)))


def _quantum(tx: Transaction, flow: Flow) -> int:
    return QUANTUM * SCALE * tx.tenant(flow.tenant).weight_permille // 1000


def _missing(tx: Transaction, flow: Flow) -> int:
    """What the flow would have to be owed more to send its head."""
    head = tx.head(flow.model, flow.priority_class, flow.tenant)
    assert head is not None, f"{flow} counts tasks that are not queued"
    return _waiting_cost(head) * SCALE - flow.deficit


def _waiting_cost(task: Task) -> int:
    return max(task.estimated_cost - task.settled_cost, 0)


def _active(tx: Transaction, band: Band) -> list[Flow]:
    return [
        flow
        for flow in tx.flows(band.model)
        if flow.priority_class == band.priority_class and flow.is_active
    ]


def _place(flow: Flow) -> tuple[int, str]:
    return flow.virtual_time, flow.tenant


def _sent(tx: Transaction, flow: Flow, num_quanta: int) -> int:
    """Tasks of its mean cost that a flow sends with what it is owed and so many quanta more; with
    -1 it has no turn at all."""
    owed = flow.deficit + num_quanta * _quantum(tx, flow)
    if num_quanta < 0 or owed < 0:
        return 0
    if not flow.queued_cost:
        return flow.num_queued
    return min(flow.num_queued, owed * flow.num_queued // (flow.queued_cost * SCALE))
