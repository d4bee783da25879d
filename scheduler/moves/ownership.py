"""What a task's owner, or an operator, may do with it: take it back, make it wait, try it again."""

from __future__ import annotations

from scheduler.errors import InvalidTransition, NotResumable
from scheduler.fair_queue import journalled_cost
from scheduler.moves.base import CANCELLED_STATUS, Outcome, Rules, move, owned, settle
from scheduler.moves.endings import can_go_on, end_unasked
from scheduler.records import changed
from scheduler.stores.base import Transaction
from scheduler.task import TRANSITIONS, Task, TaskError, TaskState


def cancel(
    tx: Transaction, rules: Rules, task_id: str, tenant: str | None, reason: str, now: float
) -> Outcome[Task]:
    """End a task that its owner no longer wants; one that is final stays as it is."""
    task = owned(tx, task_id, tenant)
    if task.state.is_final:
        return Outcome(task)
    error = TaskError(CANCELLED_STATUS, reason) if reason else None
    return end_unasked(tx, rules, task, TaskState.CANCELLED, now, error, reason or "cancelled")


def pause(
    tx: Transaction, rules: Rules, task_id: str, tenant: str | None, now: float
) -> Outcome[Task]:
    """Make a task wait until it is resumed; work under way stops, and its journal is kept.

    Raises:
        NotResumable: what it has produced cannot be gone on from.
        InvalidTransition: it has ended.
    """
    task = owned(tx, task_id, tenant)
    if task.state is TaskState.PAUSED:
        return Outcome(task)
    if task.state is not TaskState.LEASED:
        return move(tx, rules, task, TaskState.PAUSED, now)
    if not can_go_on(task):
        raise NotResumable(task.id, task.num_tokens)
    used, reason = journalled_cost(task), "paused by its owner"
    return settle(tx, rules, task, TaskState.PAUSED, used, now, reason, ended_lease=task)


def resume(
    tx: Transaction, rules: Rules, task_id: str, tenant: str | None, now: float
) -> Outcome[Task]:
    """Let a paused task go on; one that is not paused and has not ended stays as it is.

    Raises:
        InvalidTransition: it has ended.
    """
    task = owned(tx, task_id, tenant)
    if task.state.is_final:
        raise _refused(task, TaskState.QUEUED)
    if task.state is not TaskState.PAUSED:
        return Outcome(task)
    return move(tx, rules, task, TaskState.QUEUED, now)


def requeue(
    tx: Transaction, rules: Rules, task_id: str, tenant: str | None, now: float
) -> Outcome[Task]:
    """Give a dead letter as many attempts again as any task has; it goes on from its journal.

    One that was requeued and has not ended since stays as it is.

    Raises:
        InvalidTransition: it has ended otherwise.
    """
    task = owned(tx, task_id, tenant)
    if not task.state.is_final:
        return Outcome(task)
    if not task.is_dead:
        raise _refused(task, TaskState.QUEUED)
    revived = changed(task, num_lost=0, is_dead=False, error=None, finished_at=None)
    return move(tx, rules, revived, TaskState.QUEUED, now)


def _refused(task: Task, wanted: TaskState) -> InvalidTransition:
    allowed = sorted(f.value for s, f in TRANSITIONS if s is task.state and task.is_dead)
    return InvalidTransition(task.id, task.state.value, wanted.value, allowed)
