"""The book of tasks: every move a task can make, each as one atomic, durable command.

(contract; the implementation follows the same signatures)
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any

from scheduler.task import (
    Attempt, Grant, JournalChunk, Submission, Task, TaskError, TaskEvent, TaskState,
)


class TaskBook:
    """Every coroutine returns after its effect is on disk, or raises and has had none.

    All may raise StoreUnavailable.
    """

    async def submit(self, submission: Submission) -> tuple[Task, bool]:
        """Accept; (task, False) when the idempotency key already has this very request.
        Raises IdempotencyConflict."""
        raise NotImplementedError

    async def task(self, task_id: str, tenant: str | None = None) -> Task:
        """Raises TaskNotFound, also when ``tenant`` is given and is not the owner."""
        raise NotImplementedError

    async def tasks(self, *, tenant: str | None = None, model: str | None = None,
                    state: TaskState | None = None, limit: int = 100,
                    before: str | None = None) -> list[Task]:
        """Newest first; ``before`` is the last id of the page before."""
        raise NotImplementedError

    async def attempts(self, task_id: str) -> list[Attempt]:
        raise NotImplementedError

    async def chunks(self, task_id: str, cursor: int = 0, limit: int = 1000) -> list[JournalChunk]:
        """Journal entries with seq >= cursor, in order."""
        raise NotImplementedError

    async def depth(self) -> dict[str, int]:
        """Queued tasks by model."""
        raise NotImplementedError

    async def cancel(self, task_id: str, tenant: str | None = None, reason: str = "") -> Task:
        """Idempotent: a final task is returned as it is. The holder of a lease learns it through
        the ``on_cancelled`` listener, and its later writes raise StaleLease."""
        raise NotImplementedError

    # -- for the dispatcher: writes with a fence raise StaleLease when it is not the current one

    async def claim(self, model: str, *, runner: str, replica: str, limit: int = 1) -> list[Grant]:
        """Up to ``limit`` queued tasks of the model, in fair order, leased to the replica."""
        raise NotImplementedError

    async def append(self, task_id: str, fence: int, chunks: Sequence[JournalChunk]) -> int:
        """Add to the journal; chunks already there are skipped (a repeat after a reconnect), a gap
        raises ValueError. Returns the next expected seq."""
        raise NotImplementedError

    async def succeed(self, task_id: str, fence: int, result: Mapping[str, Any]) -> Task:
        """Idempotent for the same fence."""
        raise NotImplementedError

    async def fail(self, task_id: str, fence: int, error: TaskError) -> Task:
        """The request is at fault, or the handler gave up on it: final."""
        raise NotImplementedError

    async def release(self, task_id: str, fence: int, reason: str) -> Task:
        """The attempt was lost through no fault of the task: queued again at the head of its flow,
        journal kept; FAILED with status 500 when attempts are used up."""
        raise NotImplementedError

    async def renew(self, runner: str, held: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
        """Extend the leases; returns those of ``held`` that are no longer the runner's."""
        raise NotImplementedError

    async def release_others(self, runner: str, held: Iterable[tuple[str, int]], reason: str) -> list[Task]:
        """Release every lease of ``runner`` that is not in ``held`` (it restarted and forgot)."""
        raise NotImplementedError

    async def sweep(self) -> list[Task]:
        """Release leases that ran out, expire queued tasks whose deadline has passed."""
        raise NotImplementedError

    async def extend_all(self) -> int:
        """Give every live lease a full term: the control plane was away, the runners were not."""
        raise NotImplementedError

    # -- listeners, called in the event loop after the commit

    def on_queued(self, listener: Callable[[str], None]) -> None:
        """``listener(model)``: a task of the model became claimable."""

    def on_lease_ended(self, listener: Callable[[Task], None]) -> None:
        """``listener(task)``: a live lease ended other than by its holder's word (cancel, expiry);
        ``task`` still names runner, replica and fence of that lease."""

    def watch(self, task_id: str, cursor: int = 0) -> AsyncIterator[TaskEvent]:
        """Events from ``cursor`` on: chunks after they are durable, state changes, then "end".
        A slow reader loses nothing: it reads from the journal."""
        raise NotImplementedError

    # -- operator's data

    async def weights(self) -> dict[str, int]:
        """Weight by tenant, in thousandths; tenants without an entry have 1000."""
        raise NotImplementedError

    async def set_weight(self, tenant: str, weight_permille: int) -> None: ...

    async def service(self, model: str) -> dict[str, int]:
        """Cost charged so far by tenant, in weighted tokens."""
        raise NotImplementedError

    async def desired_replicas(self) -> dict[str, int]:
        """By model; only those that an operator has set, the others follow their config."""
        raise NotImplementedError

    async def set_desired_replicas(self, model: str, num_replicas: int) -> None: ...
