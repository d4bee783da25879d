"""Which task goes next: flows of queued tasks, merged by a fairness policy.

Between flows the least virtual time goes first; within a flow the store's order: priority, then
deadline, then arrival. A flow pays when it is served: the estimate at dispatch, more as soon as the
output exceeds it, and at the end of an attempt the difference to what was used, up or down.

It is pure but for the transaction it is given: no clock, no I/O of its own. The caller writes the
task; flows and the floor are written here.
"""

from __future__ import annotations

from dataclasses import replace

from scheduler.flow import Flow
from scheduler.policies.base import Policy
from scheduler.stores.base import Transaction
from scheduler.task import Task


class FairQueue:
    """The flows of every model, in the store."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def enqueue(self, tx: Transaction, task: Task) -> None:
        """Count a task that became queued into its flow."""
        flow = tx.flow(task.model, task.tenant)
        if not flow.is_active:
            flow = replace(flow, virtual_time=self._join(tx, flow))
        tx.put_flow(replace(flow, num_queued=flow.num_queued + 1))

    def head(self, tx: Transaction, model: str) -> Task | None:
        """The queued task that goes next; it stays queued."""
        flow = tx.next_flow(model)
        if flow is None:
            return None
        task = tx.head(model, flow.tenant)
        assert task is not None, f"{flow} counts tasks that are not queued"
        return task

    def withdraw(self, tx: Transaction, task: Task) -> None:
        """Count a task that leaves the queue out of its flow."""
        flow = tx.flow(task.model, task.tenant)
        flow = replace(flow, num_queued=flow.num_queued - 1)
        tx.put_flow(flow)
        if not flow.is_active and tx.next_flow(task.model) is None:
            floor = max(tx.virtual_floor(task.model), flow.virtual_time)
            tx.put_virtual_floor(task.model, floor)

    def charge(self, tx: Transaction, task: Task) -> Task:
        """Charge an attempt with its estimate, less what earlier attempts have paid for."""
        cost = max(task.estimated_cost - task.settled_cost, 0)
        return self._add(tx, task, cost)

    def top_up(self, tx: Transaction, task: Task) -> Task:
        """Charge what the journal holds beyond the estimate."""
        missing = journalled_cost(task) - task.charged_cost
        return self._add(tx, task, missing) if missing > 0 else task

    def settle(self, tx: Transaction, task: Task, used: int) -> Task:
        """Replace the running attempt's charge: the task has used ``used`` in all attempts."""
        flow = tx.flow(task.model, task.tenant)
        price = self._policy.price(used - task.settled_cost, tx.weight(task.tenant))
        tx.put_flow(
            replace(
                flow,
                virtual_time=flow.virtual_time + price - task.charged_virtual_time,
                charged_cost=flow.charged_cost + used - task.charged_cost,
            )
        )
        return replace(task, charged_cost=used, settled_cost=used, charged_virtual_time=0)

    def _add(self, tx: Transaction, task: Task, cost: int) -> Task:
        flow = tx.flow(task.model, task.tenant)
        price = self._policy.price(cost, tx.weight(task.tenant))
        tx.put_flow(
            replace(
                flow,
                virtual_time=flow.virtual_time + price,
                charged_cost=flow.charged_cost + cost,
            )
        )
        return replace(
            task,
            charged_cost=task.charged_cost + cost,
            charged_virtual_time=task.charged_virtual_time + price,
        )

    def _join(self, tx: Transaction, flow: Flow) -> int:
        least = tx.next_flow(flow.model)
        return self._policy.join(
            flow.virtual_time,
            None if least is None else least.virtual_time,
            tx.virtual_floor(flow.model),
        )


def journalled_cost(task: Task) -> int:
    """Cost of the output on disk; nothing as long as there is none."""
    return begun_cost(task) if task.num_tokens else 0


def begun_cost(task: Task) -> int:
    """Cost of the prompt and of the output on disk."""
    return task.prompt_cost + task.cost_per_token * task.num_tokens


def finished_cost(task: Task) -> int:
    """Cost of a task that succeeded; work without tokens costs what was estimated."""
    return begun_cost(task) if task.cost_per_token else task.estimated_cost
