"""What has to happen without anybody asking: deadlines, leases that ran out, pauses that are over,
room for higher classes, and the removal of what nobody needs any more."""

from __future__ import annotations

from scheduler.moves.base import Outcome, Rules, gather, move
from scheduler.moves.endings import can_go_on, expire, lose, park
from scheduler.records import changed
from scheduler.stores.base import Transaction
from scheduler.task import Task, TaskState


def expire_overdue(tx: Transaction, rules: Rules, now: float, limit: int) -> Outcome[list[Task]]:
    """End up to ``limit`` tasks whose deadline has passed."""
    return gather(expire(tx, rules, task, now) for task in tx.past_deadline(now, limit))


def lose_expired(tx: Transaction, rules: Rules, now: float, limit: int) -> Outcome[list[Task]]:
    """Release up to ``limit`` leases that ran out."""
    reason = f"lease ran out: nothing was heard of it for {rules.lease_ttl_s:g} s"
    expired = tx.expired_leases(now, limit)
    return gather(lose(tx, rules, task, reason, now, is_unasked=True) for task in expired)


def end_pauses(tx: Transaction, rules: Rules, now: float, limit: int) -> Outcome[list[Task]]:
    """Queue up to ``limit`` tasks whose pause is over, or longer than any may be: then it was
    measured by a clock that was wrong."""
    over = tx.due(now, limit)
    over += tx.due_after(now + rules.backoff.most_s, limit - len(over))
    return gather(move(tx, rules, task, TaskState.QUEUED, now) for task in over)


def renew_all(tx: Transaction, rules: Rules, now: float) -> Outcome[int]:
    """Have every live lease end a full term from now, whenever it was to; how many there are.

    Allowances that were last filled up later than now fill up from now on: the clock ran back.
    """
    for tenant in tx.tenants():
        if tenant.allowance_at > now:
            tx.put_tenant(changed(tenant, allowance_at=now))
    return Outcome(tx.renew_leases(now + rules.lease_ttl_s))


def preempt(tx: Transaction, rules: Rules, model: str, now: float) -> Outcome[list[Task]]:
    """Park work of lower classes when it is a higher one's turn and that has waited long enough.

    Whose turn it is says the fair queue, so a lower class is not parked below the share that its
    weight guarantees. What has been computed least is parked first: it costs least to go on with.
    """
    preemption = rules.preemption
    head = rules.queue.head(tx, model) if preemption is not None else None
    if preemption is None or head is None or now - head.queued_at < preemption.after_s:
        return Outcome([])
    weights = tx.class_weights()
    mine = weights.get(head.priority_class, 0)
    victims = [
        task
        for task in tx.leases_of(model)
        if weights.get(task.priority_class, 0) < mine
        and task.leased_at is not None
        and now - task.leased_at >= preemption.slice_s
        and can_go_on(task)
        and rules.queue.would_give_way(tx, task, head)
    ]
    if not victims:
        return Outcome([])
    least = min(victims, key=lambda task: (weights.get(task.priority_class, 0), _context(task)))
    reason = f"parked to make room for {head.priority_class} work of tenant {head.tenant}"
    parked = park(tx, rules, least, reason, now)
    rules.queue.give_way(tx, least, head)
    return gather([parked])


def clear(
    tx: Transaction, rules: Rules, runner: str, replica: str, reason: str, now: float
) -> Outcome[list[Task]]:
    """Park all work of a replica; what cannot go on from its journal is left to finish."""
    leases = [task for task in tx.leases(runner) if task.replica == replica and can_go_on(task)]
    return gather(park(tx, rules, task, reason, now) for task in leases)


def purge(tx: Transaction, finished_before: float, limit: int) -> int:
    """Remove tasks that ended before a moment, with all that belongs to them; how many."""
    return tx.delete_finished(finished_before, limit)


def _context(task: Task) -> int:
    """Tokens that are computed again when it goes on."""
    return task.prompt_cost + task.num_tokens
