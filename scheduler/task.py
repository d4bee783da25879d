"""A task: an accepted submission, durable and owned, and the moves it may make.

    queued --claim--> leased --finish--> succeeded | failed
      |                 |--lost, parked--> queued | delayed     (journal kept)
      |--pause----------+--> paused --resume--> queued
      +------cancel-----+--> cancelled          deadline --> expired

A task that failed because it lost too many attempts is a *dead letter*: it may be requeued, which
is the one move out of a final state. The states are an enum, the legal moves are the table
``TRANSITIONS``, and :func:`check_move` is the one place that refuses the rest. Records are
immutable; a store writes a new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from handlers.wire import TokenLogprob
from scheduler.errors import InvalidTransition
from scheduler.flow import DEFAULT_CLASS
from scheduler.records import Record


class TaskState(Enum):
    """Where a task is in its life."""

    #: Accepted and on disk, waiting for a runner.
    QUEUED = "queued"
    #: Waiting for the end of the pause after a lost attempt; queued by itself then.
    DELAYED = "delayed"
    #: Its owner wants it to wait until it is resumed.
    PAUSED = "paused"
    #: A runner holds the live lease and works on it.
    LEASED = "leased"
    SUCCEEDED = "succeeded"
    #: Ended with an error; ``Task.error`` says which.
    FAILED = "failed"
    #: Its owner took it back.
    CANCELLED = "cancelled"
    #: Its deadline passed before it finished.
    EXPIRED = "expired"

    @property
    def is_final(self) -> bool:
        """Whether a task in this state never moves again."""
        return self in _FINAL


_FINAL = frozenset({TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED, TaskState.EXPIRED})

TRANSITIONS: frozenset[tuple[TaskState, TaskState]] = frozenset(
    {
        (TaskState.QUEUED, TaskState.LEASED),
        (TaskState.QUEUED, TaskState.CANCELLED),
        (TaskState.QUEUED, TaskState.EXPIRED),
        (TaskState.QUEUED, TaskState.PAUSED),
        (TaskState.LEASED, TaskState.QUEUED),
        (TaskState.LEASED, TaskState.DELAYED),
        (TaskState.LEASED, TaskState.PAUSED),
        (TaskState.LEASED, TaskState.SUCCEEDED),
        (TaskState.LEASED, TaskState.FAILED),
        (TaskState.LEASED, TaskState.CANCELLED),
        (TaskState.LEASED, TaskState.EXPIRED),
        (TaskState.DELAYED, TaskState.QUEUED),
        (TaskState.DELAYED, TaskState.PAUSED),
        (TaskState.DELAYED, TaskState.CANCELLED),
        (TaskState.DELAYED, TaskState.EXPIRED),
        (TaskState.PAUSED, TaskState.QUEUED),
        (TaskState.PAUSED, TaskState.CANCELLED),
        (TaskState.PAUSED, TaskState.EXPIRED),
        # Dead letters only, when their owner or an operator requeues them.
        (TaskState.FAILED, TaskState.QUEUED),
    }
)


def check_move(task_id: str, start: TaskState, finish: TaskState) -> None:
    """Refuse a move the life cycle does not have.

    Raises:
        InvalidTransition: ``TRANSITIONS`` does not hold (start, finish).
    """
    if (start, finish) not in TRANSITIONS:
        allowed = sorted(f.value for s, f in TRANSITIONS if s is start)
        raise InvalidTransition(task_id, start.value, finish.value, allowed)


class Submission(Record, frozen=True):
    """A request that parsed and passed admission; not yet accepted."""

    tenant: str
    model: str
    #: What the model's handler gets, as ``handlers.wire`` parsed and completed it.
    document: Mapping[str, Any]
    #: Predicted cost in weighted tokens, at least 1.
    estimated_cost: int
    #: Prompt's share of ``estimated_cost``.
    prompt_cost: int = 0
    #: Weighted tokens that one new token costs; 0 for work that produces none.
    cost_per_token: int = 2
    #: Order within the tenant's own flow: the greater goes first.
    priority: int = 0
    #: The class whose share of the model it is served from; see :mod:`scheduler.flow`.
    priority_class: str = DEFAULT_CLASS
    #: Two submissions of a tenant with the same key are one task; None: none given.
    idempotency_key: str | None = None
    #: Seconds since the epoch after which nobody wants the result; None: never.
    deadline_at: float | None = None
    #: What a lost attempt is worth: a label of ``handlers.resumption``.
    resume: str = "close"
    #: The bulk it belongs to and its place in it, from 0; None: none.
    bulk_id: str | None = None
    bulk_index: int | None = None


class TaskError(Record, frozen=True):
    """Why a task failed, as its owner is told."""

    #: HTTP status that fits: below 500 the request was at fault.
    status: int
    message: str
    #: The field at fault; empty when it is not one field.
    field: str = ""


class Task(Record, frozen=True):
    """A task as it stands on disk."""

    #: Sortable by acceptance; 26 characters of Crockford base 32 (a ULID).
    id: str
    tenant: str
    model: str
    document: Mapping[str, Any]
    state: TaskState
    priority: int
    idempotency_key: str | None
    deadline_at: float | None
    estimated_cost: int
    prompt_cost: int
    cost_per_token: int
    #: Cost charged to the tenant's flow so far, in weighted tokens.
    charged_cost: int = 0
    #: Claims so far: 0 before the first, 1 during the first attempt.
    attempt: int = 0
    #: Changes of its state so far: of two versions of a task the one with more is newer.
    num_moves: int = 0
    #: Attempts that were lost to faults since it was last queued by hand.
    num_lost: int = 0
    #: Grows with each claim; a write that presents an older one is refused.
    fence: int = 0
    #: Runner and replica that hold the lease; None when nobody does.
    runner: str | None = None
    replica: str | None = None
    #: Seconds since the epoch; None without a lease.
    lease_expires_at: float | None = None
    #: When the running attempt began; None without a lease.
    leased_at: float | None = None
    #: Tokens the journal held when the running attempt began.
    num_tokens_before: int = 0
    #: Seconds since the epoch until which a delayed task waits; None: it does not.
    not_before: float | None = None
    #: Whether it failed because it lost too many attempts, and may be requeued.
    is_dead: bool = False
    #: Chunks in the journal, which is also the next chunk's sequence number.
    num_chunks: int = 0
    #: Tokens in the journal.
    num_tokens: int = 0
    accepted_at: float = 0.0
    #: When it last became queued.
    queued_at: float = 0.0
    first_claimed_at: float | None = None
    first_chunk_at: float | None = None
    finished_at: float | None = None
    #: The answer of a task that succeeded.
    result: Mapping[str, Any] | None = None
    #: Why it failed or expired, or was cancelled if a reason was given.
    error: TaskError | None = None
    #: Part of ``charged_cost`` that attempts which ended have used.
    settled_cost: int = 0
    #: What the running attempt's charge added to the flow's virtual time, in the policy's unit;
    #: kept so that a refund is exact although the weight may have changed.
    charged_virtual_time: int = 0
    #: The same, for the class of the task.
    charged_class_time: int = 0
    #: What a weighted token costs on the device kind that runs it, in thousandths.
    cost_factor_permille: int = 1000
    #: As in its submission, like those below.
    resume: str = "close"
    priority_class: str = DEFAULT_CLASS
    bulk_id: str | None = None
    bulk_index: int | None = None

    @property
    def num_answers(self) -> int:
        """Answers a generation was asked for; 1 for any other work."""
        return int(self.document.get("n", 1))


class JournalChunk(Record, frozen=True):
    """One entry of a task's output journal."""

    #: From 0, without gaps.
    seq: int
    token_ids: tuple[int, ...]
    text: str
    #: Which of the task's answers goes on.
    index: int = 0
    #: One for each token; empty unless they were asked for.
    logprobs: tuple[TokenLogprob, ...] = ()


class Attempt(Record, frozen=True):
    """One claim's worth of trying."""

    #: From 1.
    number: int
    fence: int
    runner: str
    replica: str
    started_at: float
    #: Tokens the journal held when the attempt began.
    num_tokens_before: int
    ended_at: float | None = None
    #: "running", "succeeded", "failed", "cancelled", "expired", "lost", "parked", "paused"
    #: or "hedged".
    outcome: str = "running"
    #: What happened, for a person; empty while nothing did.
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Grant:
    """A lease as its holder gets it: the task, and what earlier attempts have produced."""

    task: Task
    #: Every token in the journal, in order, for each answer up to the last that has any.
    generated: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class TaskEvent:
    """What a watcher of a task is told."""

    #: "state", "chunk" or "end"; after "end" nothing follows.
    kind: str
    #: Cursor to re-attach with so as to get what comes after this event: chunks seen so far.
    cursor: int
    chunk: JournalChunk | None = None
    #: The task as it stood, with "state" and "end".
    task: Task | None = field(default=None, repr=False)
