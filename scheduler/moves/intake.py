"""How work gets in: admission by quota, and acceptance.

A tenant's quotas are checked in the transaction that accepts the task, against what the store
holds, so that two gateways or two requests at once cannot both take the last place. A repeat under
an idempotency key is answered before any quota: it was accepted already.
"""

from __future__ import annotations

from collections.abc import Sequence

from scheduler.errors import ClassNotAllowed, IdempotencyConflict, InvalidRequest, QuotaExceeded
from scheduler.flow import Tenant
from scheduler.moves.base import Change, Outcome, Rules
from scheduler.records import changed
from scheduler.stores.base import Transaction
from scheduler.task import Submission, Task, TaskState

#: Seconds after which a tenant whose queue is full is told to try again.
FULL_QUEUE_RETRY_S = 5.0


def submit(
    tx: Transaction, rules: Rules, submission: Submission, task_id: str, now: float
) -> Outcome[tuple[Task, bool]]:
    """Accept; (task, False) when the idempotency key has this very request already.

    Raises:
        IdempotencyConflict: the key belongs to another request.
        ClassNotAllowed: the tenant may not use the class.
        QuotaExceeded: the tenant has all it may have.
    """
    if submission.idempotency_key is not None:
        known = tx.task_by_key(submission.tenant, submission.idempotency_key)
        if known is not None:
            _check_same_request(known, submission, submission.idempotency_key)
            return Outcome((known, False))
    admit(tx, submission.tenant, submission.priority_class, 1, submission.estimated_cost, now)
    task = _accepted(submission, task_id, now)
    tx.add_task(task)
    rules.queue.enqueue(tx, task)
    return Outcome((task, True), (Change(task),))


def add_all(
    tx: Transaction,
    rules: Rules,
    submissions: Sequence[Submission],
    task_ids: Sequence[str],
    now: float,
) -> list[Task]:
    """Accept several that were admitted together; nobody waits to hear of each."""
    tasks = [_accepted(each, i, now) for each, i in zip(submissions, task_ids, strict=True)]
    for task in tasks:
        tx.add_task(task)
        rules.queue.enqueue(tx, task)
    return tasks


def admit(
    tx: Transaction, tenant_name: str, priority_class: str, count: int, cost: int, now: float
) -> None:
    """Admit ``count`` tasks of this estimated cost together, or refuse all.

    Raises:
        InvalidRequest: there is no such class.
        ClassNotAllowed: the tenant may not use the class.
        QuotaExceeded: says which quota, what it allows, and when to try again.
    """
    _check_class(tx, priority_class)
    tenant = tx.tenant(tenant_name)
    if tenant.classes is not None and priority_class not in tenant.classes:
        raise ClassNotAllowed(tenant_name, priority_class, tenant.classes)
    if tenant.max_queued is not None:
        _check_queued(tx, tenant, count, tenant.max_queued)
    if tenant.cost_per_minute is not None:
        tx.put_tenant(_spend(tenant, cost, tenant.cost_per_minute, now))


def _check_class(tx: Transaction, priority_class: str) -> None:
    if priority_class not in (known := tx.class_weights()):
        message = f"there is no class {priority_class!r}; there are: {', '.join(sorted(known))}"
        raise InvalidRequest(f"class: {message}", field="class")


def _check_queued(tx: Transaction, tenant: Tenant, count: int, limit: int) -> None:
    queued = sum(flow.num_queued for flow in tx.flows_of(tenant.name))
    if queued + count <= limit:
        return
    message = f"tenant {tenant.name} has {queued} tasks queued and may have {limit}"
    if count > 1:
        message = f"{message}; {count} more were asked for"
    retry_after_s = None if count > limit else FULL_QUEUE_RETRY_S
    raise QuotaExceeded("max_queued", message, retry_after_s)


def _spend(tenant: Tenant, cost: int, per_minute: int, now: float) -> Tenant:
    """A token bucket that holds one minute's worth. What costs more than that is let in when it
    is full, and the tenant waits afterwards until it is above nothing again."""
    passed_s = max(0.0, now - tenant.allowance_at)
    allowance = min(float(per_minute), tenant.allowance + per_minute * passed_s / 60)
    needed = min(cost, per_minute)
    if allowance < needed:
        retry_after_s = 60 * (needed - allowance) / per_minute
        message = (
            f"tenant {tenant.name} may submit a cost of {per_minute} a minute; this costs up to "
            f"{cost} and {max(0, int(allowance))} is left"
        )
        raise QuotaExceeded("cost_per_minute", message, retry_after_s)
    return changed(tenant, allowance=allowance - cost, allowance_at=now)


def _accepted(submission: Submission, task_id: str, now: float) -> Task:
    return Task(
        id=task_id,
        tenant=submission.tenant,
        model=submission.model,
        document=submission.document,
        state=TaskState.QUEUED,
        priority=submission.priority,
        idempotency_key=submission.idempotency_key,
        deadline_at=submission.deadline_at,
        estimated_cost=submission.estimated_cost,
        prompt_cost=submission.prompt_cost,
        cost_per_token=submission.cost_per_token,
        accepted_at=now,
        queued_at=now,
        resume=submission.resume,
        priority_class=submission.priority_class,
        bulk_id=submission.bulk_id,
        bulk_index=submission.bulk_index,
    )


def _check_same_request(known: Task, submission: Submission, key: str) -> None:
    if (known.model, known.document) != (submission.model, submission.document):
        raise IdempotencyConflict(key, known.id)
