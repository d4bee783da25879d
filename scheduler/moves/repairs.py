"""What puts right rows that do not belong together; each sees for itself whether they still do.

Nothing here is needed as long as every row was written by a move: see ``scheduler/reconciliation``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from scheduler.moves.base import Outcome, Rules, gather
from scheduler.moves.endings import lose
from scheduler.moves.ownership import cancel
from scheduler.records import changed
from scheduler.stores.base import FlowCount, FlowName, Transaction
from scheduler.task import Task, TaskState

#: Who held a lease of which it is not known.
NOBODY: Final = "nobody"
_LOST_REQUEST: Final = "its request was lost from the store; send it anew"


def free_unheld(
    tx: Transaction, rules: Rules, task_ids: Iterable[str], now: float
) -> Outcome[list[Task]]:
    """Take back leased tasks that do not say who has them, or until when."""
    tasks = [task for task in map(tx.reread, task_ids) if task is not None and _is_unheld(task)]
    return gather(lose(tx, rules, _held(task, now), "nobody held its lease", now) for task in tasks)


def free_unrenewed(
    tx: Transaction, rules: Rules, seen: Task, reason: str, now: float
) -> Outcome[Task | None]:
    """Take back a leased task unless its lease was renewed, or ended, since it was seen."""
    task = tx.task(seen.id)
    if (
        task is None
        or task.state is not TaskState.LEASED
        or (task.fence, task.lease_expires_at) != (seen.fence, seen.lease_expires_at)
    ):
        return Outcome(None)
    outcome = lose(tx, rules, task, reason, now, is_unasked=True)
    return Outcome(outcome.value, outcome.changes)


def mend_request(tx: Transaction, rules: Rules, task_id: str, now: float) -> Outcome[str]:
    """Give a task whose request is lost an empty one, and cancel it if it has not ended; what was
    wrong, empty if nothing is."""
    if not tx.add_lost_document(task_id):
        return Outcome("")
    outcome = cancel(tx, rules, task_id, None, _LOST_REQUEST, now)
    return Outcome("its request is lost", outcome.changes)


def mend_journal(tx: Transaction, rules: Rules, task_id: str, now: float) -> Outcome[str]:
    """Have a task count the chunks that follow each other from the first, and remove others; what
    was wrong, empty if nothing is."""
    task = tx.reread(task_id)
    if task is None:
        return Outcome("")
    num_chunks, num_tokens = tx.journal_length(task_id, task.num_chunks)
    num_removed = tx.cut_journal(task_id, num_chunks)
    if num_chunks == task.num_chunks:
        return Outcome(f"had {num_removed} chunks beyond its last" if num_removed else "")
    problem = f"only {num_chunks} of its {task.num_chunks} chunks are left"
    cut = changed(
        task,
        num_chunks=num_chunks,
        num_tokens=num_tokens,
        num_tokens_before=min(task.num_tokens_before, num_tokens),
    )
    if task.state is not TaskState.LEASED:
        tx.put_task(cut)
        return Outcome(problem)
    # Whoever works on it has gone beyond what is left, and cannot send that again.
    outcome = lose(tx, rules, cut, problem, now, is_unasked=True, is_cut=True)
    return Outcome(problem, outcome.changes)


def remove_orphans(tx: Transaction, table: str, task_ids: Sequence[str]) -> list[str]:
    """Remove rows of a table whose task is still not there; whose they were."""
    gone = [task_id for task_id in task_ids if not tx.has_task(task_id)]
    tx.delete_parts(table, gone)
    return gone


def miscount(tx: Transaction, name: FlowName, count: FlowCount, num_active: int) -> str:
    """What a flow, or its band, counts other than its tasks; empty if nothing. ``num_active``: how
    many flows of the band take part."""
    flow, band = tx.flow(*name), tx.band(*name[:2])
    wrong = [
        f"{field} was {getattr(flow, field)}, is {getattr(count, field)}"
        for field in ("num_queued", "queued_cost", "num_leased")
        if getattr(flow, field) != getattr(count, field)
    ]
    limit = tx.tenant(flow.tenant).max_in_flight
    is_held = limit is not None and sum(f.num_leased for f in tx.flows_of(flow.tenant)) >= limit
    if flow.is_held != is_held:
        wrong.append(f"is_held was {flow.is_held}, is {is_held}")
    if band.num_active != num_active:
        wrong.append(f"its band's num_active was {band.num_active}, is {num_active}")
    return "; ".join(wrong)


def recount(tx: Transaction, rules: Rules, names: Iterable[FlowName]) -> None:
    """Count flows anew, and write what they should count, also where that is what is known of them:
    it was not what is on disk."""
    leased, tenants = tx.leased_by_flow(), set()
    for name in names:
        rules.queue.correct(tx, name, tx.count_flow(name, leased.get(name, 0)))
        tenants.add(name[2])
    for tenant in sorted(tenants):
        rules.queue.regulate(tx, tenant, has_new_limit=True)


def _is_unheld(task: Task) -> bool:
    lease = (task.runner, task.replica, task.leased_at, task.lease_expires_at)
    return task.state is TaskState.LEASED and None in lease


def _held(task: Task, now: float) -> Task:
    """With a lease that can be ended."""
    return changed(
        task,
        runner=task.runner or NOBODY,
        replica=task.replica or NOBODY,
        leased_at=now if task.leased_at is None else task.leased_at,
    )
