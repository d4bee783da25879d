"""Which task goes next: bands by the weights of their classes, flows by a fairness policy.

Of a model's bands the one with the least virtual time goes next, within it the flow that the
policy chooses, within that the store's order: priority, then deadline, then arrival. A flow and its
band pay when they are served: the estimate at dispatch, more as soon as the output exceeds it, and
at the end of an attempt the difference to what was used, up or down.

A flow of a tenant that has as much in flight as it may is *held*: it takes no part, and what it
did not use meanwhile is not made up for. Whoever begins to take part, a flow or a band, is lifted
to those that do.

It is pure but for the transaction it is given: no clock, no I/O of its own. The caller writes the
task; flows, bands and floors are written here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from scheduler.flow import Ahead, Band, Flow, Outlook
from scheduler.policies.base import Policy
from scheduler.policies.virtual_time import SCALE
from scheduler.records import changed
from scheduler.stores.base import FlowCount, FlowName, Transaction
from scheduler.task import Task

#: Tasks of a flow that are counted to say what is before one of them.
MAX_COUNTED = 10_000


@dataclass(frozen=True, slots=True)
class Charge:
    """What a task's running attempt was charged, in the fields of the task."""

    charged_cost: int
    charged_virtual_time: int
    charged_class_time: int


class FairQueue:
    """The flows of every model, in the store."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def __repr__(self) -> str:
        return f"<FairQueue policy={self._name}>"

    @property
    def _name(self) -> str:
        return type(self._policy).__module__.rpartition(".")[2]

    def adopt(self, tx: Transaction, models: Iterable[str]) -> None:
        """Take over what another policy has kept of the models' flows, in units that are not this
        one's: all begin anew, charged with what they have in flight."""
        for band in [band for model in models for band in tx.bands(model)]:
            if band.policy != self._name:
                self._adopt(tx, band)

    # -- who goes next

    def head(self, tx: Transaction, model: str, most_leased: int | None = None) -> Task | None:
        """The queued task that goes next; it stays queued.

        ``most_leased``: a flow with as many in flight is overtaken by one that has fewer, as far as
        is fair; if it waits alone, what is left is kept for those that come, and nothing goes.
        """
        active = [band for band in tx.bands(model) if band.num_active > 0]
        if not active:
            return None
        turn = partial(_turn, tx)
        band = min(active, key=turn)
        front = self._policy.next(tx, band)
        assert front is not None, f"{band} counts flows that do not take part"
        is_small = most_leased is None or front.num_leased < most_leased
        if is_small or not self._policy.keeps_slots:
            return _head(tx, front)
        for other in sorted(active, key=turn):
            flow = tx.next_flow(model, other.priority_class, most_leased)
            if flow is not None and self._may_overtake(tx, (band, front), (other, flow)):
                return _head(tx, flow)
        # Nobody may: then it is its turn, unless it keeps nobody waiting but those who come.
        is_alone = sum(each.num_active for each in active) == 1
        return None if is_alone else _head(tx, front)

    def _may_overtake(
        self, tx: Transaction, front: tuple[Band, Flow], other: tuple[Band, Flow]
    ) -> bool:
        """Whether a flow may go before the one whose turn it is: by one task, or the shares of the
        two would come apart without end."""
        (band, flow), (other_band, other_flow) = front, other
        if band.priority_class == other_band.priority_class:
            return self._policy.may_overtake(tx, flow, other_flow)
        cost = waiting_cost(_head(tx, other_flow))
        price = _class_price(cost, tx.class_weight(other_band.priority_class))
        return other_band.virtual_time <= band.virtual_time + price

    def outlook(self, tx: Transaction, task: Task) -> Outlook:
        """What goes before a task that waits, or before one that would wait now.

        The same rules that choose what goes next say what goes before: its flow has to be charged
        for what is ahead in it, until then other flows of its class are served while they stand
        below, and until its class has been charged for all that, other classes. Nothing new comes
        in meanwhile, and every cost is what was estimated.
        """
        flow = self._flow(tx, task)
        own = self._before_in_flow(tx, task, flow)
        band = tx.band(task.model, task.priority_class)
        others = self._policy.before(tx, task, flow, band, own.cost)
        weight = tx.class_weight(task.priority_class)
        stands_at = band.virtual_time if band.num_active else self._join_bands(tx, band)
        horizon = stands_at + _class_price(own.cost + others.cost, weight)
        classes = {
            other.priority_class: _before_in_band(tx, other, changed(band, virtual_time=horizon))
            for other in tx.bands(task.model)
            if other.num_active and other.priority_class != task.priority_class
        }
        return Outlook(
            own, others, {name: part for name, part in classes.items() if part.num_tasks}
        )

    def _before_in_flow(self, tx: Transaction, task: Task, flow: Flow) -> Ahead:
        num_tasks, cost = tx.ahead(task, MAX_COUNTED)
        if num_tasks < MAX_COUNTED:
            return Ahead(num_tasks, cost, 1 if num_tasks else 0)
        # To count a queue as long as this takes too long; the rest of it may be before it or not.
        num_queued = max(flow.num_queued - 1, num_tasks)
        cost = max(flow.queued_cost - waiting_cost(task), cost)
        return Ahead(num_queued, cost, 1, is_at_least=True)

    # -- what happens to tasks

    def enqueue(self, tx: Transaction, task: Task) -> None:
        """Count a task that became queued into its flow; the task is in the store."""
        flow = self._flow(tx, task)
        after = _with_queued(flow, task, 1)
        if not flow.num_queued:
            # It may be new, and its tenant held since before.
            after = changed(after, is_held=_is_at_limit(tx, task.tenant))
        self._put(tx, flow, after, is_new_head=True)

    def withdraw(self, tx: Transaction, task: Task) -> None:
        """Count a task that leaves the queue unserved out of its flow; it is gone from the
        store's queue."""
        flow = self._flow(tx, task)
        self._put(tx, flow, _with_queued(flow, task, -1), is_new_head=True)

    def lease(self, tx: Transaction, task: Task, cost_factor_permille: int = 1000) -> Charge:
        """Charge the queued task with its estimate, less what earlier attempts have paid for, and
        count it as in flight; it is still in the store's queue.

        Returns:
            What it was charged, for the caller to write before :meth:`left`.
        """
        flow, cost = self._flow(tx, task), waiting_cost(task)
        price, class_price = self._prices(tx, task, cost * cost_factor_permille // 1000)
        charged = self._policy.charge(flow, price)
        after = changed(
            charged,
            num_queued=flow.num_queued - 1,
            queued_cost=flow.queued_cost - cost,
            num_leased=flow.num_leased + 1,
            charged_cost=flow.charged_cost + cost,
        )
        self._charge_band(tx, flow, class_price)
        # Charged before it is withdrawn: when this was the last active flow, the floor it leaves
        # behind counts the service that is now under way.
        self._put(tx, flow, after)
        return Charge(
            task.charged_cost + cost,
            task.charged_virtual_time + price,
            task.charged_class_time + class_price,
        )

    def left(self, tx: Transaction, task: Task) -> None:
        """The leased task has left the store's queue: see who is its flow's head now, and whether
        its tenant may have more in flight."""
        flow = self._flow(tx, task)
        if flow.is_active and (after := self._policy.served(tx, flow)) is not flow:
            tx.put_flow(after)
        self.regulate(tx, task.tenant)

    def top_up(self, tx: Transaction, task: Task) -> Task:
        """Charge what the journal holds beyond the estimate."""
        missing = journalled_cost(task) - task.charged_cost
        if missing <= 0:
            return task
        flow = self._flow(tx, task)
        price, class_price = self._prices(tx, task, missing * task.cost_factor_permille // 1000)
        charged = self._policy.charge(flow, price)
        tx.put_flow(changed(charged, charged_cost=flow.charged_cost + missing))
        self._charge_band(tx, flow, class_price)
        return changed(
            task,
            charged_cost=task.charged_cost + missing,
            charged_virtual_time=task.charged_virtual_time + price,
            charged_class_time=task.charged_class_time + class_price,
        )

    def settle(self, tx: Transaction, task: Task, used: int) -> None:
        """Replace the running attempt's charge: the task has used ``used`` in all attempts."""
        flow = self._flow(tx, task)
        cost = (used - task.settled_cost) * task.cost_factor_permille // 1000
        price, class_price = self._prices(tx, task, cost)
        charged = self._policy.charge(flow, price - task.charged_virtual_time)
        tx.put_flow(
            changed(
                charged,
                charged_cost=flow.charged_cost + used - task.charged_cost,
                num_leased=flow.num_leased - 1,
            )
        )
        self._charge_band(tx, flow, class_price - task.charged_class_time)
        self.regulate(tx, task.tenant)

    def would_give_way(self, tx: Transaction, task: Task, head: Task) -> bool:
        """Whether it is the turn of ``head``, of another class, once the leased task is parked: its
        class then stands where what was used has brought it. One that has been served since it
        began to take part gets no more than its share; one that has not was lifted to where the
        whole charge had brought the other."""
        loser = tx.band(task.model, task.priority_class)
        winner = tx.band(head.model, head.priority_class)
        cost = (journalled_cost(task) - task.settled_cost) * task.cost_factor_permille // 1000
        unused = task.charged_class_time - _class_price(cost, tx.class_weight(task.priority_class))
        return winner.is_fresh or winner.virtual_time <= loser.virtual_time - unused

    def give_way(self, tx: Transaction, parked: Task, head: Task) -> None:
        """A task was parked so that ``head`` of another class can go: a class that has not been
        served since it was lifted to the other is as if it had been lifted to what was used."""
        loser = tx.band(parked.model, parked.priority_class)
        winner = tx.band(head.model, head.priority_class)
        if winner.is_fresh and winner.virtual_time > loser.virtual_time:
            stands_at = loser.virtual_time
            tx.put_band(changed(winner, virtual_time=stands_at, lifted_to=stands_at))

    def regulate(self, tx: Transaction, tenant: str, *, has_new_limit: bool = False) -> None:
        """Hold the tenant's flows while it has as much in flight as it may."""
        if tx.tenant(tenant).max_in_flight is None and not has_new_limit:
            return
        is_held = _is_at_limit(tx, tenant)
        for flow in tx.flows_of(tenant):
            if flow.is_held != is_held:
                self._put(tx, flow, changed(flow, is_held=is_held), is_new_head=True)

    def correct(self, tx: Transaction, name: FlowName, count: FlowCount) -> None:
        """Write what a flow and its band should count. Its tenant is still to be regulated."""
        flow, band = tx.flow(*name), tx.band(*name[:2])
        num_active = tx.waiting(*name[:2]).num_flows
        if band.num_active != num_active:
            tx.put_band(changed(band, num_active=num_active))
        after = changed(
            flow,
            num_queued=count.num_queued,
            queued_cost=count.queued_cost,
            num_leased=count.num_leased,
        )
        self._put(tx, flow, after, is_new_head=True)

    # -- how

    def _flow(self, tx: Transaction, task: Task) -> Flow:
        return tx.flow(task.model, task.priority_class, task.tenant)

    def _prices(self, tx: Transaction, task: Task, cost: int) -> tuple[int, int]:
        """What a cost adds to the flow of the task, and to its band."""
        price = self._policy.price(cost, tx.tenant(task.tenant).weight_permille)
        return price, _class_price(cost, tx.class_weight(task.priority_class))

    def _charge_band(self, tx: Transaction, flow: Flow, price: int) -> None:
        band = tx.band(flow.model, flow.priority_class)
        tx.put_band(changed(band, virtual_time=band.virtual_time + price))

    def _put(
        self, tx: Transaction, before: Flow, after: Flow, *, is_new_head: bool = False
    ) -> None:
        """Write a flow, and what its beginning or ceasing to take part means for its band."""
        if before.is_active == after.is_active:
            if after.is_active and is_new_head:
                after = self._policy.served(tx, after)
            tx.put_flow(after)
            return
        band = tx.band(after.model, after.priority_class)
        if after.is_active:
            if not band.num_active:
                stands_at = self._join_bands(tx, band)
                lifted_to = stands_at if stands_at > band.virtual_time else None
                band = changed(band, virtual_time=stands_at, lifted_to=lifted_to)
            after, band = self._policy.join(tx, after, band)
            tx.put_flow(after)
            tx.put_band(changed(band, num_active=band.num_active + 1, policy=self._name))
            return
        tx.put_flow(after)
        band = changed(band, num_active=band.num_active - 1)
        if not band.num_active:
            band = self._policy.leave(after, band)
            self._leave_bands(tx, band)
        tx.put_band(band)

    def _adopt(self, tx: Transaction, band: Band) -> None:
        model, priority_class = band.model, band.priority_class
        for flow in tx.flows(model):
            if flow.priority_class == priority_class:
                tx.put_flow(changed(flow, virtual_time=0, deficit=0))
        for task in tx.leases_of(model):
            if task.priority_class == priority_class:
                cost = (task.charged_cost - task.settled_cost) * task.cost_factor_permille // 1000
                price, _ = self._prices(tx, task, cost)
                tx.put_task(changed(task, charged_virtual_time=price))
                tx.put_flow(self._policy.charge(self._flow(tx, task), price))
        band = changed(band, virtual_floor=0, policy=self._name)
        for flow in tx.flows(model):
            if flow.priority_class == priority_class and flow.is_active:
                joined, band = self._policy.join(tx, flow, band)
                tx.put_flow(joined)
        tx.put_band(band)

    def _join_bands(self, tx: Transaction, band: Band) -> int:
        active = [each.virtual_time for each in tx.bands(band.model) if each.num_active > 0]
        return max(band.virtual_time, min(active, default=tx.virtual_floor(band.model)))

    def _leave_bands(self, tx: Transaction, band: Band) -> None:
        others = [each for each in tx.bands(band.model) if each.num_active > 0]
        if all(each.priority_class == band.priority_class for each in others):
            floor = max(tx.virtual_floor(band.model), band.virtual_time)
            tx.put_virtual_floor(band.model, floor)


def _head(tx: Transaction, flow: Flow) -> Task:
    task = tx.head(flow.model, flow.priority_class, flow.tenant)
    assert task is not None, f"{flow} counts tasks that are not queued"
    return task


def _is_at_limit(tx: Transaction, tenant: str) -> bool:
    limit = tx.tenant(tenant).max_in_flight
    return limit is not None and sum(flow.num_leased for flow in tx.flows_of(tenant)) >= limit


def _turn(tx: Transaction, band: Band) -> tuple[int, int, str]:
    # A class that begins to take part is lifted to the least of the others, where it stands equal:
    # then the one of more weight goes first, or it would wait for a task of the lighter one.
    return band.virtual_time, -tx.class_weight(band.priority_class), band.priority_class


def _before_in_band(tx: Transaction, band: Band, waiting: Band) -> Ahead:
    """What another class sends until it is the turn of ``waiting``, each task of its mean cost."""
    if _turn(tx, band) > _turn(tx, waiting):
        return Ahead()
    distance = waiting.virtual_time - band.virtual_time
    there = tx.waiting(band.model, band.priority_class)
    weight = tx.class_weight(band.priority_class)
    cost = min(there.cost, distance * weight // (1000 * SCALE))
    if not there.cost:
        return there
    num_tasks = min(there.num_tasks, max(1, -(-cost * there.num_tasks // there.cost)))
    return Ahead(num_tasks, num_tasks * there.cost // there.num_tasks, there.num_flows)


def _class_price(cost: int, weight_permille: int) -> int:
    return cost * 1000 * SCALE // weight_permille


def _with_queued(flow: Flow, task: Task, count: int) -> Flow:
    return changed(
        flow,
        num_queued=flow.num_queued + count,
        queued_cost=flow.queued_cost + count * waiting_cost(task),
    )


def waiting_cost(task: Task) -> int:
    """What a queued task is expected to cost yet."""
    return max(task.estimated_cost - task.settled_cost, 0)


def journalled_cost(task: Task) -> int:
    """Cost of the output on disk; nothing as long as there is none."""
    return begun_cost(task) if task.num_tokens else 0


def begun_cost(task: Task) -> int:
    """Cost of the prompt and of the output on disk."""
    return task.prompt_cost + task.cost_per_token * task.num_tokens


def finished_cost(task: Task) -> int:
    """Cost of a task that succeeded; work without tokens costs what was estimated."""
    return begun_cost(task) if task.cost_per_token else task.estimated_cost
