"""Every move of a task, as a function over a transaction: what it needs, changes and refuses.

Three rules hold throughout. A write that presents a fencing token counts only while the task is
leased under that very token. A command that may be repeated after a lost answer gives the stored
answer again. And whatever a move means for the fair queue happens in the same transaction.

Nothing here reads a clock, draws an id or tells anybody: ``now`` and ids are given, and what
watchers should hear is returned as :class:`Change` values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from handlers import resumption
from scheduler.errors import IdempotencyConflict, StaleLease, TaskNotFound
from scheduler.fair_queue import FairQueue, begun_cost, finished_cost, journalled_cost
from scheduler.stores.base import Transaction
from scheduler.task import (
    Attempt,
    Grant,
    JournalChunk,
    Submission,
    Task,
    TaskError,
    TaskState,
    check_move,
)

T = TypeVar("T")

#: Status of a task its owner cancelled, and of one whose deadline passed, as proxies use them.
CANCELLED_STATUS = 499
EXPIRED_STATUS = 504
#: Tasks past their deadline that one claim moves out of its way.
MAX_EXPIRED = 200

#: What an attempt is called that ended with its task in this state.
_OUTCOMES = {
    TaskState.QUEUED: "lost",
    TaskState.SUCCEEDED: "succeeded",
    TaskState.FAILED: "failed",
    TaskState.CANCELLED: "cancelled",
    TaskState.EXPIRED: "expired",
}


@dataclass(frozen=True, slots=True)
class Rules:
    """What is configured about the life of a task."""

    queue: FairQueue
    lease_ttl_s: float
    #: Attempts a task may lose before it fails.
    max_attempts: int


@dataclass(frozen=True, slots=True)
class Change:
    """What happened to one task, for those who wait to hear of it."""

    #: The task as it stands now.
    task: Task
    #: What was added to its journal.
    chunks: tuple[JournalChunk, ...] = ()
    #: The task as it was leased, when the lease ended without its holder's word.
    ended_lease: Task | None = None


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """What a command answers, and what it changed, in order."""

    value: T
    changes: tuple[Change, ...] = ()


# ------------------------------------------------------------------------------ for the gateway


def submit(
    tx: Transaction, rules: Rules, submission: Submission, task_id: str, now: float
) -> Outcome[tuple[Task, bool]]:
    """Accept; (task, False) when the idempotency key has this very request already."""
    if submission.idempotency_key is not None:
        known = tx.task_by_key(submission.tenant, submission.idempotency_key)
        if known is not None:
            _check_same_request(known, submission, submission.idempotency_key)
            return Outcome((known, False))
    task = Task(
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
        resume=submission.resume,
    )
    tx.add_task(task)
    rules.queue.enqueue(tx, task)
    return Outcome((task, True), (Change(task),))


def _check_same_request(known: Task, submission: Submission, key: str) -> None:
    if (known.model, known.document) != (submission.model, submission.document):
        raise IdempotencyConflict(key, known.id)


def owned(tx: Transaction, task_id: str, tenant: str | None = None) -> Task:
    """The task, if it exists and, where a tenant is given, is that tenant's.

    Raises:
        TaskNotFound: it is not.
    """
    task = tx.task(task_id)
    if task is None or (tenant is not None and task.tenant != tenant):
        raise TaskNotFound(task_id)
    return task


def cancel(
    tx: Transaction, rules: Rules, task_id: str, tenant: str | None, reason: str, now: float
) -> Outcome[Task]:
    """End a task that its owner no longer wants; one that is final stays as it is."""
    task = owned(tx, task_id, tenant)
    if task.state.is_final:
        return Outcome(task)
    error = TaskError(CANCELLED_STATUS, reason) if reason else None
    return _end_unasked(tx, rules, task, TaskState.CANCELLED, now, error, reason or "cancelled")


# --------------------------------------------------------------------------- for the dispatcher


def claim(
    tx: Transaction, rules: Rules, model: str, runner: str, replica: str, limit: int, now: float
) -> Outcome[list[Grant]]:
    """Lease up to ``limit`` queued tasks of the model to a replica, in fair order.

    Fewer may also mean that many had to be expired first, and that others wait for their turn.
    """
    grants: list[Grant] = []
    changes: list[Change] = []
    while len(grants) < limit and len(changes) < limit + MAX_EXPIRED:
        task = rules.queue.head(tx, model)
        if task is None:
            break
        if task.deadline_at is not None and task.deadline_at <= now:
            changes += _expire(tx, rules, task, now).changes
            continue
        grant = _lease(tx, rules, task, runner, replica, now)
        grants.append(grant)
        changes.append(Change(grant.task))
    return Outcome(grants, tuple(changes))


def _lease(
    tx: Transaction, rules: Rules, task: Task, runner: str, replica: str, now: float
) -> Grant:
    check_move(task.id, task.state, TaskState.LEASED)
    # Charged before it is withdrawn: when this was the last active flow, the floor it leaves
    # behind counts the service that is now under way.
    task = rules.queue.charge(tx, task)
    rules.queue.withdraw(tx, task)
    task = replace(
        task,
        state=TaskState.LEASED,
        attempt=task.attempt + 1,
        fence=task.fence + 1,
        runner=runner,
        replica=replica,
        lease_expires_at=now + rules.lease_ttl_s,
        first_claimed_at=now if task.first_claimed_at is None else task.first_claimed_at,
    )
    tx.put_task(task)
    attempt = Attempt(task.attempt, task.fence, runner, replica, now, task.num_tokens)
    tx.add_attempt(task.id, attempt)
    return Grant(task, tx.token_ids(task.id) if task.num_chunks else ())


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
    task = replace(
        task,
        num_chunks=task.num_chunks + len(new),
        num_tokens=task.num_tokens + sum(len(chunk.token_ids) for chunk in new),
        first_chunk_at=now if task.first_chunk_at is None else task.first_chunk_at,
    )
    task = rules.queue.top_up(tx, task)
    tx.put_task(task)
    return Outcome(task.num_chunks, (Change(task, new),))


def succeed(
    tx: Transaction, rules: Rules, task_id: str, fence: int, result: Mapping[str, Any], now: float
) -> Outcome[Task]:
    """Record the answer."""
    task = owned(tx, task_id)
    if _has_ended(tx, task, fence, "succeeded"):
        return Outcome(task)
    task = replace(_held(task, fence), result=result)
    return _settle(tx, rules, task, TaskState.SUCCEEDED, finished_cost(task), now)


def fail(
    tx: Transaction, rules: Rules, task_id: str, fence: int, error: TaskError, now: float
) -> Outcome[Task]:
    """Record that there will be no answer."""
    task = owned(tx, task_id)
    if _has_ended(tx, task, fence, "failed"):
        return Outcome(task)
    task = replace(_held(task, fence), error=error)
    used = journalled_cost(task)
    return _settle(tx, rules, task, TaskState.FAILED, used, now, error.message)


def release(
    tx: Transaction, rules: Rules, task_id: str, fence: int, reason: str, now: float
) -> Outcome[Task]:
    """Queue a task again whose attempt was lost, or fail it when it has lost too many."""
    task = owned(tx, task_id)
    if _has_ended(tx, task, fence, "lost"):
        return Outcome(task)
    return _lose(tx, rules, _held(task, fence), reason, now)


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
    return _gather(_lose(tx, rules, task, reason, now) for task in forgotten)


def sweep(tx: Transaction, rules: Rules, now: float, limit: int) -> Outcome[list[Task]]:
    """Expire tasks whose deadline has passed and release leases that ran out, up to ``limit``."""
    outcomes = [_expire(tx, rules, task, now) for task in tx.past_deadline(now, limit)]
    for task in tx.expired_leases(now, limit - len(outcomes)):
        reason = f"lease ran out: nothing was heard of it for {rules.lease_ttl_s:g} s"
        outcomes.append(_lose(tx, rules, task, reason, now, is_unasked=True))
    return _gather(outcomes)


def extend_all(tx: Transaction, rules: Rules, now: float) -> Outcome[int]:
    """Give every live lease a full term."""
    return Outcome(tx.extend_leases(now + rules.lease_ttl_s))


# ------------------------------------------------------------------------------------ the moves


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


def _expire(tx: Transaction, rules: Rules, task: Task, now: float) -> Outcome[Task]:
    where = "while it waited" if task.state is TaskState.QUEUED else "while it was worked on"
    error = TaskError(EXPIRED_STATUS, f"the task's deadline passed {where}")
    return _end_unasked(tx, rules, task, TaskState.EXPIRED, now, error, error.message)


def _end_unasked(
    tx: Transaction,
    rules: Rules,
    task: Task,
    state: TaskState,
    now: float,
    error: TaskError | None,
    reason: str,
) -> Outcome[Task]:
    """End a task that its holder, if it has one, did not end."""
    ended = replace(task, error=error)
    if task.state is TaskState.LEASED:
        # The prompt is paid for although no output came of it: its owner took the work away.
        return _settle(tx, rules, ended, state, begun_cost(task), now, reason, ended_lease=task)
    check_move(task.id, task.state, state)
    rules.queue.withdraw(tx, task)
    ended = replace(ended, state=state, finished_at=now)
    tx.put_task(ended)
    return Outcome(ended, (Change(ended),))


def _lose(
    tx: Transaction, rules: Rules, task: Task, reason: str, now: float, *, is_unasked: bool = False
) -> Outcome[Task]:
    """End a lost attempt: queued again, journal kept; or failed, when attempts are used up or it
    cannot go on from what is on disk: a new answer would differ, and the two would be mixed."""
    used, lease = journalled_cost(task), task if is_unasked else None
    can_go_on = task.resume != resumption.NONE or not task.num_chunks
    if can_go_on and task.attempt < rules.max_attempts:
        return _settle(tx, rules, task, TaskState.QUEUED, used, now, reason, ended_lease=lease)
    told = [(a.runner, a.replica, a.reason) for a in tx.attempts(task.id)]
    told[-1] = (*told[-1][:2], reason)
    history = "; ".join(
        f"attempt {number} on {replica} of {runner}: {why}"
        for number, (runner, replica, why) in enumerate(told, 1)
    )
    why = f"lost {task.attempt} of {rules.max_attempts} attempts allowed"
    if not can_go_on:
        why = f"cannot go on from its {task.num_tokens} tokens on disk (resume: none); send it anew"
    failed = replace(task, error=TaskError(500, f"{why}: {history}"))
    return _settle(
        tx, rules, failed, TaskState.FAILED, used, now, reason, outcome="lost", ended_lease=lease
    )


def _settle(
    tx: Transaction,
    rules: Rules,
    task: Task,
    state: TaskState,
    used: int,
    now: float,
    reason: str = "",
    *,
    outcome: str | None = None,
    ended_lease: Task | None = None,
) -> Outcome[Task]:
    """End the running attempt: account for it, and move the task on to ``state``."""
    check_move(task.id, task.state, state)
    attempt = tx.attempts(task.id)[-1]
    outcome = outcome or _OUTCOMES[state]
    tx.put_attempt(task.id, replace(attempt, ended_at=now, outcome=outcome, reason=reason))
    task = replace(
        rules.queue.settle(tx, task, used),
        state=state,
        runner=None,
        replica=None,
        lease_expires_at=None,
        finished_at=now if state.is_final else None,
    )
    tx.put_task(task)
    if state is TaskState.QUEUED:
        rules.queue.enqueue(tx, task)
    return Outcome(task, (Change(task, ended_lease=ended_lease),))


def _gather(outcomes: Iterable[Outcome[Task]]) -> Outcome[list[Task]]:
    done = list(outcomes)
    return Outcome(
        [outcome.value for outcome in done],
        tuple(change for outcome in done for change in outcome.changes),
    )
