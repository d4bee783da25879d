"""Builders of tasks, and the audit that every test of the store may end with.

Builders default whatever a test is not about.
"""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from scheduler import moves
from scheduler.fair_queue import FairQueue, waiting_cost
from scheduler.flow import Flow
from scheduler.moves import Rules
from scheduler.policies import virtual_time
from scheduler.stores import sqlite
from scheduler.stores._transaction import Transaction as SqlTransaction
from scheduler.stores.base import Transaction
from scheduler.task import JournalChunk, Submission, Task, TaskState

MODEL = "demo"


def submission(tenant: str = "ann", **changes: Any) -> Submission:
    """A generation: 5 prompt tokens, at most 10 new ones."""
    values: dict[str, Any] = {
        "model": MODEL,
        "document": {"prompt": "def", "max_new_tokens": 10},
        "estimated_cost": 25,
        "prompt_cost": 5,
        "cost_per_token": 2,
    }
    return Submission(tenant, **{**values, **changes})


def chunk(seq: int, *token_ids: int) -> JournalChunk:
    """A chunk of one token unless others are given."""
    tokens = token_ids or (100 + seq,)
    return JournalChunk(seq, tokens, "".join(f"<{token}>" for token in tokens))


def rules(*, max_attempts: int = 5, lease_ttl_s: float = 10.0) -> Rules:
    return Rules(FairQueue(virtual_time.Policy()), lease_ttl_s, max_attempts)


@contextmanager
def memory_transaction() -> Iterator[Transaction]:
    """A transaction on an empty database in memory, for commands run one after the other."""
    with MemoryDisk() as disk:
        yield disk.transaction


class MemoryDisk:
    """A database in memory that outlives what has been read of it."""

    def __init__(self) -> None:
        self._connection = sqlite3.connect(sqlite.MEMORY, isolation_level=None)
        self._connection.deserialize(empty_database())
        self.transaction = SqlTransaction(sqlite.Database(self._connection))

    def __enter__(self) -> MemoryDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def restart(self) -> SqlTransaction:
        """Write down what is not written yet, and forget everything else."""
        self.transaction.flush()
        self.transaction = SqlTransaction(sqlite.Database(self._connection))
        return self.transaction


@functools.cache
def empty_database() -> bytes:
    """Its schema takes a while to make."""
    with closing(sqlite.connect(sqlite.MEMORY)) as connection:
        return connection.serialize()


def problems(tx: Transaction) -> list[str]:
    """What does not add up in a store; empty when all does."""
    tasks = tx.tasks(tenant=None, model=None, state=None, limit=1_000_000, before=None)
    found = [problem for task in tasks for problem in _problems_of(tx, task)]
    for model in {task.model for task in tasks}:
        flows = tx.flows(model)
        for flow in flows:
            found += _problems_of_flow(
                flow, [task for task in tasks if _flow_of(task) == _key(flow)]
            )
        found += _problems_of_holds(tx, flows)
        for band in tx.bands(model):
            own = [flow for flow in flows if flow.priority_class == band.priority_class]
            num_active = sum(flow.is_active for flow in own)
            if band.num_active != num_active:
                found.append(f"{band} should have {num_active} active")
    return found


def _flow_of(task: Task) -> tuple[str, str, str]:
    return task.model, task.priority_class, task.tenant


def _key(flow: Flow) -> tuple[str, str, str]:
    return flow.model, flow.priority_class, flow.tenant


def _problems_of_holds(tx: Transaction, flows: list[Flow]) -> Iterator[str]:
    for tenant in {flow.tenant for flow in flows}:
        own, limit = tx.flows_of(tenant), tx.tenant(tenant).max_in_flight
        should = limit is not None and sum(flow.num_leased for flow in own) >= limit
        for flow in own:
            if flow.is_held != should:
                yield f"{flow} should have is_held={should}"


def _problems_of_flow(flow: Flow, own: list[Task]) -> Iterator[str]:
    queued = [task for task in own if task.state is TaskState.QUEUED]
    expected = {
        "num_queued": len(queued),
        "queued_cost": sum(map(waiting_cost, queued)),
        "num_leased": sum(task.state is TaskState.LEASED for task in own),
        "charged_cost": sum(task.charged_cost for task in own),
    }
    for name, value in expected.items():
        if getattr(flow, name) != value:
            yield f"{flow} should have {name}={value}"


def _problems_of(tx: Transaction, task: Task) -> Iterator[str]:
    chunks = tx.chunks(task.id, 0, 1_000_000)
    if [c.seq for c in chunks] != list(range(task.num_chunks)):
        yield f"the journal of {task.id} has {[c.seq for c in chunks]}, not {task.num_chunks}"
    if sum(len(c.token_ids) for c in chunks) != task.num_tokens:
        yield f"the journal of {task.id} does not hold {task.num_tokens} tokens"
    is_leased = task.state is TaskState.LEASED
    if is_leased != (task.runner is not None) or is_leased != (task.lease_expires_at is not None):
        yield f"{task.id} is {task.state.value} with a lease of {task.runner}"
    if task.state.is_final != (task.finished_at is not None):
        yield f"{task.id} is {task.state.value}, finished at {task.finished_at}"
    if (task.state is TaskState.DELAYED) != (task.not_before is not None):
        yield f"{task.id} is {task.state.value}, not before {task.not_before}"
    if not is_leased and (task.charged_virtual_time or task.charged_cost != task.settled_cost):
        yield f"{task.id} is {task.state.value} and not settled"
    attempts = moves.attempts(tx, task)
    if [a.fence for a in attempts] != list(range(1, task.fence + 1)):
        yield f"{task.id} at fence {task.fence} has attempts {attempts}"
    running = [a.fence for a in attempts if a.outcome == "running"]
    if running != ([task.fence] if is_leased else []):
        yield f"{task.id} is {task.state.value} with attempts {running} running"
