"""What happened in a run, as records in the order in which they were written down.

Moments are seconds since the run began, by the machine's monotonic clock, which no fault turns.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Sent:
    """A client wants a task done, and goes on asking until it is told that it is accepted."""

    at: float
    key: str
    tenant: str
    document: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Accepted:
    """A client was told that its task is accepted; it may be told several times."""

    at: float
    key: str
    task_id: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A client asked in vain, to ask again."""

    at: float
    key: str
    #: HTTP status; 0: nobody answered.
    status: int


@dataclass(frozen=True, slots=True)
class Cancelled:
    """A client asks to have its task back."""

    at: float
    task_id: str


@dataclass(frozen=True, slots=True)
class Attached:
    """A client follows a task from a cursor on."""

    at: float
    #: One reader of one task, over all its connections.
    reader: str
    task_id: str
    cursor: int


@dataclass(frozen=True, slots=True)
class Read:
    """A client got a chunk."""

    at: float
    reader: str
    task_id: str
    cursor: int
    token_ids: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Seen:
    """A client was told how a task stands."""

    at: float
    reader: str
    task_id: str
    state: str
    attempt: int
    runner: str | None
    is_end: bool


@dataclass(frozen=True, slots=True)
class Broke:
    """A client's stream ended before its task did."""

    at: float
    reader: str
    task_id: str


@dataclass(frozen=True, slots=True)
class Fault:
    """Something was done to the cluster; it lasted until ``until``."""

    at: float
    until: float
    kind: str
    target: str


@dataclass(frozen=True, slots=True)
class Computed:
    """A model server has computed a token."""

    at: float
    server: str
    seed: int
    position: int


@dataclass(frozen=True, slots=True)
class Unregistered:
    """A replica was taken away from a model server."""

    at: float
    server: str
    replica: str
    #: Requests it worked on whose client was still there.
    num_running: int


@dataclass(frozen=True, slots=True)
class Sample:
    """How the cluster stood."""

    at: float
    #: None while the control plane does not answer.
    num_connected: int | None
    num_ready: int | None
    num_queued: int | None
    num_in_flight: int | None
    #: Nodes of which every process runs.
    num_whole_nodes: int


Record = (
    Sent | Accepted | Refused | Cancelled | Attached | Read | Seen | Broke | Fault | Computed
    | Unregistered | Sample
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class StoredTask:
    """A task as the store holds it at the end."""

    id: str
    tenant: str
    key: str | None
    state: str
    fence: int
    num_chunks: int
    error: str | None


@dataclass(frozen=True, slots=True)
class StoredAttempt:
    """An attempt as the store holds it at the end."""

    task_id: str
    fence: int
    #: Seconds since the epoch, by a clock that faults may have turned; None: it never ended.
    ended_at: float | None
    outcome: str


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """A chunk of a journal."""

    task_id: str
    seq: int
    token_ids: tuple[int, ...]
    text: str


@dataclass(slots=True)
class Stored:
    """What the store holds at the end."""

    tasks: list[StoredTask] = field(default_factory=list)
    attempts: list[StoredAttempt] = field(default_factory=list)
    chunks: list[StoredChunk] = field(default_factory=list)


@dataclass(slots=True)
class History:
    """A run."""

    #: When it began, by the monotonic clock.
    began: float = field(default_factory=time.monotonic)
    records: list[Record] = field(default_factory=list)
    stored: Stored = field(default_factory=Stored)
    #: Names of the nodes, by the ids of their runners.
    nodes: dict[str, str] = field(default_factory=dict)

    def now(self) -> float:
        return time.monotonic() - self.began

    def add(self, record: Record) -> None:
        self.records.append(record)
