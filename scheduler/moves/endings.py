"""How a task or an attempt ends other than by its holder's word."""

from __future__ import annotations

from handlers import resumption
from scheduler.fair_queue import begun_cost, journalled_cost
from scheduler.moves.base import EXPIRED_STATUS, Outcome, Rules, attempts, move, settle
from scheduler.records import changed
from scheduler.stores.base import Transaction
from scheduler.task import Task, TaskError, TaskState


def end_unasked(
    tx: Transaction,
    rules: Rules,
    task: Task,
    state: TaskState,
    now: float,
    error: TaskError | None,
    reason: str,
) -> Outcome[Task]:
    """End a task that its holder, if it has one, did not end."""
    ended = changed(task, error=error)
    if task.state is TaskState.LEASED:
        # The prompt is paid for although no output came of it: its owner took the work away.
        return settle(tx, rules, ended, state, begun_cost(task), now, reason, ended_lease=task)
    return move(tx, rules, ended, state, now)


def expire(tx: Transaction, rules: Rules, task: Task, now: float) -> Outcome[Task]:
    """End a task whose deadline has passed."""
    where = "while it was worked on" if task.state is TaskState.LEASED else "while it waited"
    error = TaskError(EXPIRED_STATUS, f"the task's deadline passed {where}")
    return end_unasked(tx, rules, task, TaskState.EXPIRED, now, error, error.message)


def can_go_on(task: Task) -> bool:
    """Whether a new attempt can go on from what is on disk: if not, a new answer would differ
    from the old one, and the two would be mixed."""
    return task.resume != resumption.NONE or not task.num_chunks


def lose(
    tx: Transaction,
    rules: Rules,
    task: Task,
    reason: str,
    now: float,
    *,
    is_unasked: bool = False,
    is_cut: bool = False,
) -> Outcome[Task]:
    """End a lost attempt: the task waits again, journal kept; or it fails, when it has lost as many
    attempts as it may, or cannot go on. ``is_cut``: some of its output is lost too."""
    used, lease = journalled_cost(task), task if is_unasked else None
    task = changed(task, num_lost=task.num_lost + 1)
    if not can_go_on(task) or (is_cut and task.resume == resumption.NONE):
        why = f"cannot go on from its {task.num_tokens} tokens on disk (resume: none); send it anew"
    elif task.num_lost >= rules.max_attempts:
        why = f"lost {task.num_lost} of {rules.max_attempts} attempts allowed"
        task = changed(task, is_dead=True)
    else:
        pause_s = rules.backoff.pause_s(task.id, task.num_lost)
        state = TaskState.DELAYED if pause_s else TaskState.QUEUED
        until = now + pause_s if pause_s else None
        return settle(
            tx, rules, task, state, used, now, reason, not_before=until, ended_lease=lease
        )
    history = _history(tx, task, reason)
    failed = changed(task, error=TaskError(500, f"{why}: {history}"))
    return settle(
        tx, rules, failed, TaskState.FAILED, used, now, reason, outcome="lost", ended_lease=lease
    )


def park(tx: Transaction, rules: Rules, task: Task, reason: str, now: float) -> Outcome[Task]:
    """Take a leased task from its holder, to be gone on with later from its journal."""
    used = journalled_cost(task)
    return settle(
        tx, rules, task, TaskState.QUEUED, used, now, reason, outcome="parked", ended_lease=task
    )


def _history(tx: Transaction, task: Task, reason: str) -> str:
    told = [(a.runner, a.replica, a.reason) for a in attempts(tx, task)]
    told[-1] = (*told[-1][:2], reason)
    return "; ".join(
        f"attempt {number} on {replica} of {runner}: {why}"
        for number, (runner, replica, why) in enumerate(told, 1)
    )
