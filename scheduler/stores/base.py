"""The durable state: what every store promises, and the primitives the rules are written in.

A store runs *commands* (functions over a :class:`Transaction` that may write) and *queries* (that
only read). A command is atomic and isolated; when ``run`` returns, its effect survives the death of
the process and of the machine. The rules themselves (``scheduler/moves``,
``scheduler/fair_queue.py``) are written once, over any store.

The executable form of this contract is ``tests/contracts/test_store_*.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from scheduler.bulk import Bulk
from scheduler.container import ContainerOrder, Flakiness
from scheduler.flow import Ahead, Band, Flow, Tenant
from scheduler.keys import Key
from scheduler.registration import Leadership, Placement, Registration
from scheduler.scaling import Measure, ModelLoad, ScaleDecision
from scheduler.task import Attempt, JournalChunk, Task, TaskState

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class News:
    """What a command of another process on the same store has changed."""

    #: Tasks that moved or grew; None: there were too many to name.
    task_ids: tuple[str, ...] | None
    #: Models of which a task became claimable.
    models: tuple[str, ...] = ()
    #: Leases that ended without their holder's word: (task, fence, runner).
    ended_leases: tuple[tuple[str, int, str], ...] = ()
    #: Whether operators have set what should run.
    has_desired: bool = False
    #: Whether a node came, went, changed, or is to run something else.
    has_nodes: bool = False


#: A flow: model, priority class, tenant.
FlowName = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class FlowCount:
    """What a flow should count, by its tasks."""

    num_queued: int
    queued_cost: int
    num_leased: int


@dataclass(frozen=True, slots=True)
class TaskParts:
    """What there is of a task beside its row."""

    task_id: str
    has_document: bool
    #: Chunks by the task's row.
    num_chunks: int
    #: The seq after the last in the journal; 0 when that has none.
    next_seq: int
    #: Chunks in the journal.
    num_rows: int


class TaskTables(Protocol):
    """Tasks, their attempts and their output."""

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
        tenant: str | None = None,
        model: str | None = None,
        state: TaskState | None = None,
        is_dead: bool = False,
        limit: int,
        before: str | None = None,
    ) -> list[Task]:
        """Newest first; ``before`` is an id, itself left out; ``is_dead``: only dead letters."""
        ...

    def head(self, model: str, priority_class: str, tenant: str) -> Task | None:
        """The queued task of a flow that goes next: greatest priority, then earliest deadline
        (those without come last), then least id."""
        ...

    def ahead(self, task: Task, limit: int) -> tuple[int, int]:
        """How many tasks of a queued task's flow go before it, and their estimated cost; no more
        than ``limit`` are counted."""
        ...

    def queued_before(self, task: Task, limit: int) -> Ahead:
        """Queued tasks of the task's band that were accepted before it, its own flow's left out; no
        more than ``limit`` are counted."""
        ...

    def due(self, now: float, limit: int) -> list[Task]:
        """Delayed tasks whose pause was over at ``now`` or before, earliest first."""
        ...

    def due_after(self, moment: float, limit: int) -> list[Task]:
        """Delayed tasks whose pause ends after ``moment``, latest first."""
        ...

    def delete_finished(self, before: float, limit: int) -> int:
        """Remove up to ``limit`` tasks that finished before a moment, oldest first, with all that
        belongs to them; how many."""
        ...

    # -- leases and deadlines

    def extend_lease(self, task_id: str, fence: int, runner: str, expires_at: float) -> bool:
        """Extend a live lease; False when the runner does not hold it under that fence."""
        ...

    def renew_leases(self, expires_at: float) -> int:
        """Have every live lease end at ``expires_at``; how many there are."""
        ...

    def leases(self, runner: str) -> list[Task]:
        """Tasks leased to the runner."""
        ...

    def leases_of(self, model: str) -> list[Task]:
        """Tasks of the model that are leased."""
        ...

    def expired_leases(self, now: float, limit: int) -> list[Task]:
        """Leased tasks whose lease ended at ``now`` or before, earliest first."""
        ...

    def past_deadline(self, now: float, limit: int) -> list[Task]:
        """Tasks that have not ended and whose deadline is ``now`` or before, earliest first."""
        ...

    # -- attempts and output

    def add_attempt(self, task_id: str, attempt: Attempt) -> None:
        """Write an attempt that has ended; the running one is in its task."""
        ...

    def attempts(self, task_id: str) -> list[Attempt]:
        """Those that have ended, in order."""
        ...

    def add_chunks(self, task_id: str, chunks: Sequence[JournalChunk]) -> None: ...

    def chunks(self, task_id: str, cursor: int, limit: int) -> list[JournalChunk]:
        """Journal entries with seq >= cursor, in order."""
        ...

    def token_ids(self, task_id: str) -> tuple[tuple[int, ...], ...]:
        """Every token in the journal, in order, for each answer up to the last that has any."""
        ...


class FlowTables(Protocol):
    """Flows, bands, tenants, and what operators set."""

    def flow(self, model: str, priority_class: str, tenant: str) -> Flow:
        """A flow that was never used is all zeros."""
        ...

    def put_flow(self, flow: Flow) -> None: ...

    def next_flow(
        self, model: str, priority_class: str, most_leased: int | None = None
    ) -> Flow | None:
        """The active flow of least virtual time, among equals the one of least tenant; with
        ``most_leased`` of those that have fewer in flight."""
        ...

    def flows(self, model: str) -> list[Flow]:
        """By class and tenant."""
        ...

    def flows_of(self, tenant: str) -> list[Flow]:
        """By model and class."""
        ...

    def depth(self) -> dict[str, int]:
        """Queued tasks by model; models without any are left out."""
        ...

    def bands(self, model: str) -> Iterable[Band]:
        """Those that were ever used."""
        ...

    def band(self, model: str, priority_class: str) -> Band:
        """A band that was never used is all zeros."""
        ...

    def put_band(self, band: Band) -> None: ...

    def waiting(self, model: str, priority_class: str) -> Ahead:
        """All that waits in the active flows of a band."""
        ...

    def waiting_below(self, flow: Flow, horizon: int) -> Ahead:
        """What other active flows of the band send until each reaches a virtual time.

        A flow sends its tasks, each of its flow's mean cost and one at least, until what they cost,
        at its tenant's weight, has brought it from where it stands to ``horizon``; flows that stand
        there already send none.
        """
        ...

    def virtual_floor(self, model: str) -> int:
        """Where the bands' virtual time stood when the model's last one fell silent; 0 at first."""
        ...

    def put_virtual_floor(self, model: str, virtual_time: int) -> None: ...

    def tenant(self, name: str) -> Tenant:
        """A tenant for which nothing was set has the defaults."""
        ...

    def tenants(self) -> list[Tenant]:
        """Those for which something was set, by name."""
        ...

    def put_tenant(self, tenant: Tenant) -> None: ...

    def class_weights(self) -> dict[str, int]:
        """In thousandths, by class, those nobody set included."""
        ...

    def class_weight(self, priority_class: str) -> int: ...

    def put_class(self, priority_class: str, weight_permille: int) -> None: ...

    def cost_factor(self, model: str, device_kind: str) -> int:
        """In thousandths; 1000 unless set."""
        ...

    def cost_factors(self) -> dict[tuple[str, str], int]:
        """Those set, by model and device kind."""
        ...

    def put_cost_factor(self, model: str, device_kind: str, factor_permille: int) -> None: ...

    def desired_replicas(self) -> dict[str, int]: ...

    def put_desired_replicas(self, model: str, num_replicas: int) -> None: ...

    def remove_desired_replicas(self, model: str) -> None:
        """Nobody says any more how many there should be; nothing happens when nobody did."""
        ...


class OtherTables(Protocol):
    """Bulks, and tenants' keys."""

    def put_bulk(self, bulk: Bulk) -> None: ...

    def bulk(self, bulk_id: str) -> Bulk | None: ...

    def bulk_by_key(self, tenant: str, idempotency_key: str) -> Bulk | None: ...

    def bulks(self, *, tenant: str | None, limit: int, before: str | None) -> list[Bulk]:
        """Newest first; ``before`` is an id, itself not included."""
        ...

    def bulk_counts(self, bulk_id: str) -> dict[TaskState, int]:
        """Its tasks by state; states without any are left out."""
        ...

    def bulk_tasks(self, bulk_id: str, start: int, limit: int) -> list[Task]:
        """Its tasks from place ``start`` on, in order."""
        ...

    def bulk_unfinished(self, bulk_id: str, limit: int) -> list[Task]:
        """Up to ``limit`` of its tasks that have not ended."""
        ...

    def bulks_left_open(self, created_before: float, limit: int) -> list[Bulk]:
        """Bulks begun before a moment that are not closed yet."""
        ...

    def bulks_to_cancel(self, limit: int) -> list[Bulk]:
        """Bulks that were cancelled and have tasks that have not ended."""
        ...

    def delete_bulks(self, closed_before: float, limit: int) -> int:
        """Remove up to ``limit`` bulks that were closed before a moment and have no tasks left; how
        many."""
        ...

    def put_key(self, key: Key) -> None: ...

    def key(self, key_id: str) -> Key | None: ...

    def keys(self, tenant: str | None) -> list[Key]:
        """By id, those that were revoked included."""
        ...


class ScalingTables(Protocol):
    """The work there is, what replicas were measured to do, and what was decided."""

    def load(self, model: str) -> ModelLoad:
        """Of what is queued, only what tenants' limits on tasks in flight allow to run now counts
        as work there is."""
        ...

    def scaled_replicas(self) -> dict[str, int]:
        """Those that were decided from the work, by model."""
        ...

    def put_scaled_replicas(self, model: str, num_replicas: int) -> None: ...

    def measures(self, model: str) -> list[Measure]:
        """By device kind."""
        ...

    def put_measure(self, measure: Measure) -> None: ...

    def scale_decisions(self, model: str, limit: int) -> list[ScaleDecision]:
        """Newest first."""
        ...

    def put_scale_decision(self, decision: ScaleDecision) -> None:
        """Write one, in the place of one of the same number; the oldest go."""
        ...


class RowChecks(Protocol):
    """Whether rows belong together, and what puts them right; for ``scheduler/reconciliation``."""

    def reread(self, task_id: str) -> Task | None:
        """A task as it is on disk, whatever is known of it."""
        ...

    def leased_to_nobody(self, limit: int) -> list[str]:
        """Ids of leased tasks that do not say by whom, on what, since when or until when."""
        ...

    def owners(self, table: str, after: str, limit: int) -> list[tuple[str, bool]]:
        """Whose rows a table of ``documents``, ``attempts`` and ``journal`` has: ids greater than
        ``after``, in order, and whether there is such a task."""
        ...

    def has_task(self, task_id: str) -> bool: ...

    def delete_parts(self, table: str, task_ids: Sequence[str]) -> None:
        """Remove all rows of these tasks from one of the three tables."""
        ...

    def task_parts(self, after: str, limit: int) -> list[TaskParts]:
        """Tasks with ids greater than ``after``, in order."""
        ...

    def add_lost_document(self, task_id: str) -> bool:
        """Write an empty request for a task that has none; whether it had none."""
        ...

    def journal_length(self, task_id: str, most: int) -> tuple[int, int]:
        """Chunks that follow each other from the first, ``most`` at most, and their tokens."""
        ...

    def cut_journal(self, task_id: str, num_chunks: int) -> int:
        """Remove chunks from ``num_chunks`` on; how many there were."""
        ...

    def flow_names(self, after: FlowName, limit: int) -> list[FlowName]:
        """Flows greater than ``after``, in order, that are on record or have waiting or leased
        tasks."""
        ...

    def leased_by_flow(self) -> dict[FlowName, int]:
        """Leased tasks by flow; flows without any are left out."""
        ...

    def count_flow(self, name: FlowName, num_leased: int) -> FlowCount:
        """A flow's queued tasks, counted; ``num_leased`` as it was counted for all."""
        ...


class ContainerTables(Protocol):
    """Containers from providers."""

    def container_orders(self) -> list[ContainerOrder]:
        """Every place that was ever filled, by provider and ordinal."""
        ...

    def put_container_order(self, order: ContainerOrder) -> None: ...

    def provider_ledger(self) -> list[Flakiness]:
        """By provider and class."""
        ...

    def put_provider_note(self, note: Flakiness) -> None: ...


class NodeTables(Protocol):
    """Nodes, what they are to run, and which control plane decides that."""

    def put_registration(self, registration: Registration) -> None: ...

    def registration(self, runner_id: str) -> Registration | None: ...

    def registrations(self) -> list[Registration]:
        """By node and runner."""
        ...

    def delete_registration(self, runner_id: str) -> None: ...

    def put_placement(self, placement: Placement) -> None: ...

    def placements(self) -> list[Placement]:
        """By runner."""
        ...

    def delete_placement(self, runner_id: str) -> None: ...

    def leadership(self, role: str) -> Leadership:
        """A role that nobody ever had is held by nobody, in epoch 0."""
        ...

    def put_leadership(self, leadership: Leadership) -> None: ...


class Transaction(
    TaskTables,
    FlowTables,
    OtherTables,
    ScalingTables,
    RowChecks,
    ContainerTables,
    NodeTables,
    Protocol,
):
    """Reads and writes of one command. It is valid only while the command runs."""

    def tell(self, news: News) -> None:
        """Let other processes on the same store know, once this is committed; where there can be
        none, nothing happens."""
        ...


class Store(Protocol):
    """Where tasks live."""

    #: Whether other processes may write to it, who are told of changes and tell of theirs.
    is_shared: bool

    async def run(
        self,
        command: Callable[[Transaction], T],
        then: Callable[[T | None, BaseException | None], None] | None = None,
    ) -> T:
        """Run a command as one transaction; its effect is on disk when this returns.

        The command may be run several times, of which the last counts: it must do nothing but
        through its transaction. An error it raises is raised here, and it has had no effect.
        ``then`` is given the value or the error first, in the event loop and in the order of
        commits, also when the caller was cancelled meanwhile; it must not raise.

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

    async def now(self) -> float | None:
        """Seconds since the epoch by the store's own clock; None: it has none but the machine's.

        Raises:
            StoreUnavailable: the store refused.
        """
        ...

    def listen(self, listener: Callable[[News | None], None]) -> None:
        """``listener`` is called in the event loop with what other processes on this store have
        told; with None when something may have been missed."""
        ...

    async def close(self) -> None:
        """Finish what was asked before, then let go of the storage."""
        ...
