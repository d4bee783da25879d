"""The durable state: what every store promises, and the primitives the rules are written in.

A store runs *commands* (functions over a :class:`Transaction` that may write) and *queries* (that
only read). A command is atomic and isolated; when ``run`` returns, its effect survives the death of
the process and of the machine. The rules themselves (``scheduler/moves.py``,
``scheduler/fair_queue.py``) are written once, over any store.

The executable form of this contract is ``tests/contracts/test_store_contract.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from scheduler.flow import Flow
from scheduler.task import Attempt, JournalChunk, Task, TaskState

T = TypeVar("T")


class Transaction(Protocol):
    """Reads and writes of one command. It is valid only while the command runs."""

    # -- tasks

    def add_task(self, task: Task) -> None:
        """Write a task that is new."""
        ...

    def put_task(self, task: Task) -> None:
        """Write what may change of a task: all but who sent it, what it asks and when."""
        ...

    def task(self, task_id: str) -> Task | None: ...

    def task_by_key(self, tenant: str, idempotency_key: str) -> Task | None: ...

    def tasks(
        self,
        *,
        tenant: str | None,
        model: str | None,
        state: TaskState | None,
        limit: int,
        before: str | None,
    ) -> list[Task]:
        """Newest first; ``before`` is an id, itself not included."""
        ...

    def head(self, model: str, tenant: str) -> Task | None:
        """The queued task of a flow that goes next: greatest priority, then earliest deadline
        (those without come last), then least id."""
        ...

    def depth(self) -> dict[str, int]:
        """Queued tasks by model; models without any are left out."""
        ...

    # -- leases and deadlines

    def extend_lease(self, task_id: str, fence: int, runner: str, expires_at: float) -> bool:
        """Extend a live lease; False when the runner does not hold it under that fence."""
        ...

    def extend_leases(self, expires_at: float) -> int:
        """Extend every live lease to at least ``expires_at``; how many there are."""
        ...

    def leases(self, runner: str) -> list[Task]:
        """Tasks leased to the runner."""
        ...

    def expired_leases(self, now: float, limit: int) -> list[Task]:
        """Leased tasks whose lease ended at ``now`` or before, earliest first."""
        ...

    def past_deadline(self, now: float, limit: int) -> list[Task]:
        """Queued and leased tasks whose deadline is ``now`` or before, earliest first."""
        ...

    # -- attempts and output

    def add_attempt(self, task_id: str, attempt: Attempt) -> None: ...

    def put_attempt(self, task_id: str, attempt: Attempt) -> None:
        """Write how an attempt ended."""
        ...

    def attempts(self, task_id: str) -> list[Attempt]:
        """In order."""
        ...

    def add_chunks(self, task_id: str, chunks: Sequence[JournalChunk]) -> None: ...

    def chunks(self, task_id: str, cursor: int, limit: int) -> list[JournalChunk]:
        """Journal entries with seq >= cursor, in order."""
        ...

    def token_ids(self, task_id: str) -> tuple[tuple[int, ...], ...]:
        """Every token in the journal, in order, for each answer up to the last that has any."""
        ...

    # -- flows

    def flow(self, model: str, tenant: str) -> Flow:
        """A flow that was never used is all zeros."""
        ...

    def put_flow(self, flow: Flow) -> None: ...

    def next_flow(self, model: str) -> Flow | None:
        """The active flow of least virtual time, among equals the one of least tenant."""
        ...

    def flows(self, model: str) -> list[Flow]: ...

    def virtual_floor(self, model: str) -> int:
        """Where the model's virtual time stood when its last active flow left; 0 at first."""
        ...

    def put_virtual_floor(self, model: str, virtual_time: int) -> None: ...

    # -- operator's data

    def weight(self, tenant: str) -> int:
        """In thousandths; 1000 unless set."""
        ...

    def weights(self) -> dict[str, int]: ...

    def put_weight(self, tenant: str, weight_permille: int) -> None: ...

    def desired_replicas(self) -> dict[str, int]: ...

    def put_desired_replicas(self, model: str, num_replicas: int) -> None: ...


class Store(Protocol):
    """Where tasks live."""

    async def run(self, command: Callable[[Transaction], T]) -> T:
        """Run a command as one transaction; its effect is on disk when this returns.

        An error the command raises is raised here, and the command has had no effect.

        Raises:
            StoreUnavailable: the store refused, and whether it wrote is unknown. A caller that is
                cancelled does not know either: the command may still run.
        """
        ...

    async def read(self, query: Callable[[Transaction], T]) -> T:
        """Run a query over one consistent state, which holds every command that has returned.

        Raises:
            StoreUnavailable: the store refused.
        """
        ...

    async def close(self) -> None:
        """Finish what was asked before, then let go of the storage."""
        ...
