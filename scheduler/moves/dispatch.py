"""What a dispatcher does with tasks: leases them, writes down what comes of it, gives them back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from scheduler.errors import StaleLease
from scheduler.fair_queue import finished_cost, journalled_cost
from scheduler.moves.base import Change, Outcome, Rules, gather, owned, settle
from scheduler.moves.endings import expire, lose
from scheduler.records import changed
from scheduler.stores.base import Transaction
from scheduler.task import Grant, JournalChunk, Task, TaskError, TaskState, check_move

#: Tasks past their deadline that one claim moves out of its way.
MAX_EXPIRED = 200


def claim(
    tx: Transaction,
    rules: Rules,
    model: str,
    runner: str,
    replica: str,
    limit: int,
    now: float,
    device_kind: str = "",
    most_leased: int | None = None,
) -> Outcome[list[Grant]]:
    """Lease up to ``limit`` queued tasks of the model to a replica, in fair order.

    ``device_kind`` is what the replica runs on: the cost of its work counts by that kind's factor.
    ``most_leased``: only to flows that have fewer tasks in flight.
    Fewer may also mean that many had to be expired first, and that others wait for their turn.
    """
    grants: list[Grant] = []
    changes: list[Change] = []
    factor = tx.cost_factor(model, device_kind)
    while len(grants) < limit and len(changes) < limit + MAX_EXPIRED:
        task = rules.queue.head(tx, model, most_leased)
        if task is None:
            break
        if task.deadline_at is not None and task.deadline_at <= now:
            changes += expire(tx, rules, task, now).changes
            continue
        grant = _lease(tx, rules, task, runner, replica, factor, now)
        grants.append(grant)
        changes.append(Change(grant.task))
    return Outcome(grants, tuple(changes))


def _lease(
    tx: Transaction,
    rules: Rules,
    task: Task,
    runner: str,
    replica: str,
    factor: int,
    now: float,
) -> Grant:
    check_move(task.id, task.state, TaskState.LEASED)
    charge = rules.queue.lease(tx, task, factor)
    task = changed(
        task,
        charged_cost=charge.charged_cost,
        charged_virtual_time=charge.charged_virtual_time,
        charged_class_time=charge.charged_class_time,
        cost_factor_permille=factor,
        state=TaskState.LEASED,
        num_moves=task.num_moves + 1,
        attempt=task.attempt + 1,
        fence=task.fence + 1,
        runner=runner,
        replica=replica,
        lease_expires_at=now + rules.lease_ttl_s,
        leased_at=now,
        num_tokens_before=task.num_tokens,
        first_claimed_at=now if task.first_claimed_at is None else task.first_claimed_at,
    )
    tx.put_task(task)
    rules.queue.left(tx, task)
    return Grant(task, tx.token_ids(task.id) if task.num_chunks else ())


def hand_over(
    tx: Transaction,
    rules: Rules,
    task_id: str,
    fence: int,
    runner: str,
    replica: str,
    now: float,
    device_kind: str = "",
) -> Outcome[Grant | None]:
    """Lease a task that its holder has not begun to answer to another replica.

    The lease ends and the next one begins in one transaction, so there is one at any moment. None,
    and nothing happens, when the lease is over, its first output is on disk, or the task was handed
    over before.
    """
    task = owned(tx, task_id)
    is_held = task.state is TaskState.LEASED and task.fence == fence
    if not is_held or task.num_tokens > task.num_tokens_before:
        return Outcome(None)
    if any(attempt.outcome == "hedged" for attempt in tx.attempts(task.id)):
        return Outcome(None)
    used, reason = journalled_cost(task), f"its first token was overdue; handed to {runner}"
    ended = settle(
        tx, rules, task, TaskState.QUEUED, used, now, reason, outcome="hedged", ended_lease=task
    )
    factor = tx.cost_factor(task.model, device_kind)
    grant = _lease(tx, rules, ended.value, runner, replica, factor, now)
    return Outcome(grant, (*ended.changes, Change(grant.task)))


def append(
    tx: Transaction,
    rules: Rules,
    task_id: str,
    fence: int,
    chunks: Sequence[JournalChunk],
    now: float,
) -> Outcome[int]:
    """Add to the journal what it does not hold yet; the next seq it expects.

    Raises:
        StaleLease: the lease has ended.
        ValueError: a chunk is missing before one of these.
    """
    task = _held(owned(tx, task_id), fence)
    new = tuple(chunk for chunk in chunks if chunk.seq >= task.num_chunks)
    for expected, chunk in enumerate(new, task.num_chunks):
        if chunk.seq != expected:
            raise ValueError(f"task {task_id}: chunk {chunk.seq} came where {expected} is next")
    if not new:
        return Outcome(task.num_chunks)
    tx.add_chunks(task_id, new)
    task = changed(
        task,
        num_chunks=task.num_chunks + len(new),
        num_tokens=task.num_tokens + sum(len(chunk.token_ids) for chunk in new),
        first_chunk_at=now if task.first_chunk_at is None else task.first_chunk_at,
    )
    task = rules.queue.top_up(tx, task)
    tx.put_task(task)
    return Outcome(task.num_chunks, (Change(task, new),))


def succeed(
    tx: Transaction,
    rules: Rules,
    task_id: str,
    fence: int,
    result: Mapping[str, Any],
    now: float,
    chunks: Sequence[JournalChunk] = (),
) -> Outcome[Task]:
    """Record the answer, and what of the output is not in the journal yet.

    Raises:
        StaleLease: the lease has ended otherwise.
        ValueError: a chunk is missing before one of these.
    """
    task = owned(tx, task_id)
    if _has_ended(tx, task, fence, "succeeded"):
        return Outcome(task)
    written = append(tx, rules, task_id, fence, chunks, now).changes
    task = _held(owned(tx, task_id), fence)
    used = finished_cost(task)
    ended = settle(tx, rules, task, TaskState.SUCCEEDED, used, now, result=result)
    return Outcome(ended.value, (*written, *ended.changes))


def fail(
    tx: Transaction, rules: Rules, task_id: str, fence: int, error: TaskError, now: float
) -> Outcome[Task]:
    """Record that there will be no answer."""
    task = owned(tx, task_id)
    if _has_ended(tx, task, fence, "failed"):
        return Outcome(task)
    used = journalled_cost(_held(task, fence))
    return settle(tx, rules, task, TaskState.FAILED, used, now, error.message, error=error)


def release(
    tx: Transaction, rules: Rules, task_id: str, fence: int, reason: str, now: float
) -> Outcome[Task]:
    """Queue a task again whose attempt was lost, or fail it when it has lost too many."""
    task = owned(tx, task_id)
    if _has_ended(tx, task, fence, "lost"):
        return Outcome(task)
    return lose(tx, rules, _held(task, fence), reason, now)


def renew(
    tx: Transaction, rules: Rules, runner: str, held: Iterable[tuple[str, int]], now: float
) -> Outcome[list[tuple[str, int]]]:
    """Extend the runner's leases; those of ``held`` that are not its own any more."""
    expires_at = now + rules.lease_ttl_s
    lost = [
        (task_id, fence)
        for task_id, fence in held
        if not tx.extend_lease(task_id, fence, runner, expires_at)
    ]
    return Outcome(lost)


def release_others(
    tx: Transaction,
    rules: Rules,
    runner: str,
    held: Iterable[tuple[str, int]],
    reason: str,
    now: float,
) -> Outcome[list[Task]]:
    """Release every lease of the runner that is not in ``held``."""
    kept = set(held)
    forgotten = [task for task in tx.leases(runner) if (task.id, task.fence) not in kept]
    return gather(lose(tx, rules, task, reason, now) for task in forgotten)


def _held(task: Task, fence: int) -> Task:
    """The task, if it is leased under this very fence."""
    if task.state is not TaskState.LEASED or task.fence != fence:
        raise StaleLease(task.id, fence)
    return task


def _has_ended(tx: Transaction, task: Task, fence: int, outcome: str) -> bool:
    """Whether this lease ended before with this outcome: its holder repeats itself."""
    if task.fence != fence or task.state is TaskState.LEASED or not fence:
        return False
    return tx.attempts(task.id)[-1].outcome == outcome
