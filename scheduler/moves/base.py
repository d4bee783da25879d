"""What every move of a task needs: the rules, what it answers, and how an attempt is settled.

Three rules hold throughout. A write that presents a fencing token counts only while the task is
leased under that very token. A command that may be repeated after a lost answer gives the stored
answer again. And whatever a move means for the fair queue happens in the same transaction.

Nothing in this package reads a clock, draws an id or tells anybody: ``now`` and ids are given, and
what watchers should hear is returned as :class:`Change` values.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from scheduler.errors import TaskNotFound
from scheduler.fair_queue import FairQueue
from scheduler.records import changed
from scheduler.stores.base import Transaction
from scheduler.task import Attempt, JournalChunk, Task, TaskState, check_move

T = TypeVar("T")

#: Status of a task its owner cancelled, and of one whose deadline passed, as proxies use them.
CANCELLED_STATUS = 499
EXPIRED_STATUS = 504

#: What an attempt is called that ended with its task in this state.
_OUTCOMES = {
    TaskState.QUEUED: "lost",
    TaskState.DELAYED: "lost",
    TaskState.PAUSED: "paused",
    TaskState.SUCCEEDED: "succeeded",
    TaskState.FAILED: "failed",
    TaskState.CANCELLED: "cancelled",
    TaskState.EXPIRED: "expired",
}


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long a task waits after a lost attempt.

    After the first not at all: a machine that is gone says nothing about the task. From the second
    on the pause doubles, up to a limit, and is shortened by up to a half so that tasks that were
    lost together do not come back together.
    """

    first_s: float = 1.0
    most_s: float = 60.0

    def pause_s(self, task_id: str, num_lost: int) -> float:
        """Seconds to wait when so many attempts have been lost."""
        if num_lost < 2:
            return 0.0
        spread = zlib.crc32(f"{task_id} {num_lost}".encode()) / 2**32
        longest = min(self.most_s, self.first_s * 2.0 ** min(num_lost - 2, 60))
        return float(longest * (1 - spread / 2))


@dataclass(frozen=True, slots=True)
class Preemption:
    """When running work of a lower class makes room for a higher one."""

    #: Seconds that work of the higher class has waited.
    after_s: float = 2.0
    #: Seconds that work of the lower class is left alone after it began.
    slice_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Rules:
    """What is configured about the life of a task."""

    queue: FairQueue
    lease_ttl_s: float
    #: Attempts a task may lose before it fails.
    max_attempts: int
    backoff: Backoff = field(default_factory=Backoff)
    #: None: running work is left alone.
    preemption: Preemption | None = field(default_factory=Preemption)


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


def owned(tx: Transaction, task_id: str, tenant: str | None = None) -> Task:
    """The task, if it exists and, where a tenant is given, is that tenant's.

    Raises:
        TaskNotFound: it is not.
    """
    task = tx.task(task_id)
    if task is None or (tenant is not None and task.tenant != tenant):
        raise TaskNotFound(task_id)
    return task


def attempts(tx: Transaction, task: Task) -> list[Attempt]:
    """All attempts of a task in order, the running one included."""
    ended = tx.attempts(task.id)
    return [*ended, _running(task)] if task.state is TaskState.LEASED else ended


def move(
    tx: Transaction,
    rules: Rules,
    task: Task,
    state: TaskState,
    now: float,
    *,
    not_before: float | None = None,
) -> Outcome[Task]:
    """Move a task that nobody holds on to ``state``, and count it into or out of the queue."""
    check_move(task.id, task.state, state)
    was_queued = task.state is TaskState.QUEUED
    is_queued = state is TaskState.QUEUED
    task = changed(
        task,
        state=state,
        num_moves=task.num_moves + 1,
        not_before=not_before,
        queued_at=now if is_queued else task.queued_at,
        finished_at=now if state.is_final else None,
    )
    tx.put_task(task)
    if was_queued:
        rules.queue.withdraw(tx, task)
    if is_queued:
        rules.queue.enqueue(tx, task)
    if state.is_final:
        give_back_allowance(tx, task)
    return Outcome(task, (Change(task),))


def settle(
    tx: Transaction,
    rules: Rules,
    task: Task,
    state: TaskState,
    used: int,
    now: float,
    reason: str = "",
    *,
    outcome: str | None = None,
    not_before: float | None = None,
    ended_lease: Task | None = None,
    **changes: Any,
) -> Outcome[Task]:
    """End the running attempt: account for it, and move the task on to ``state``.

    ``changes``: further fields of the task to set.
    """
    check_move(task.id, task.state, state)
    ended = changed(
        _running(task), ended_at=now, outcome=outcome or _OUTCOMES[state], reason=reason
    )
    tx.add_attempt(task.id, ended)
    is_queued = state is TaskState.QUEUED
    rules.queue.settle(tx, task, used)
    task = changed(
        task,
        charged_cost=used,
        settled_cost=used,
        charged_virtual_time=0,
        charged_class_time=0,
        cost_factor_permille=1000,
        state=state,
        num_moves=task.num_moves + 1,
        runner=None,
        replica=None,
        lease_expires_at=None,
        leased_at=None,
        not_before=not_before,
        queued_at=now if is_queued else task.queued_at,
        finished_at=now if state.is_final else None,
        **changes,
    )
    tx.put_task(task)
    if is_queued:
        rules.queue.enqueue(tx, task)
    elif state.is_final:
        give_back_allowance(tx, task)
    return Outcome(task, (Change(task, ended_lease=ended_lease),))


def give_back_allowance(tx: Transaction, task: Task) -> None:
    """A task is final: its tenant may submit again what its estimate took too much, and has less
    where it took too little."""
    tenant = tx.tenant(task.tenant)
    unused = task.estimated_cost - task.charged_cost
    if tenant.cost_per_minute is not None and unused:
        tx.put_tenant(changed(tenant, allowance=tenant.allowance + unused))


def gather(outcomes: Iterable[Outcome[Task]]) -> Outcome[list[Task]]:
    """Several outcomes as one."""
    done = list(outcomes)
    return Outcome(
        [outcome.value for outcome in done],
        tuple(change for outcome in done for change in outcome.changes),
    )


def _running(task: Task) -> Attempt:
    assert task.runner is not None
    assert task.replica is not None
    assert task.leased_at is not None
    return Attempt(
        task.attempt, task.fence, task.runner, task.replica, task.leased_at, task.num_tokens_before
    )
