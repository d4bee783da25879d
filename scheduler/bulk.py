"""A bulk: many inputs for one model, handed in together.

Each input is a task of its own, with the place it had. A bulk is open while its inputs come in;
work begins with the first.
"""

from __future__ import annotations

from scheduler.records import Record

#: Most inputs of one bulk.
MAX_INPUTS = 100_000


class Bulk(Record, frozen=True):
    """A bulk as it stands on disk; its progress is counted from its tasks."""

    #: Sortable by creation, as tasks' ids are.
    id: str
    tenant: str
    model: str
    priority_class: str
    created_at: float
    #: For people; empty when none was given.
    name: str = ""
    idempotency_key: str | None = None
    #: Inputs accepted so far.
    num_inputs: int = 0
    #: When the last input had come in; None while more may come.
    closed_at: float | None = None
    #: When its owner took it back; None: not.
    cancelled_at: float | None = None
