"""Builders of tasks, and the audit that every test of the store may end with.

Builders default whatever a test is not about.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from scheduler.fair_queue import FairQueue
from scheduler.moves import Rules
from scheduler.policies import virtual_time
from scheduler.stores import sqlite
from scheduler.stores._sqlite_transaction import Transaction as SqliteTransaction
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
    with closing(sqlite.connect(sqlite.MEMORY)) as connection:
        yield SqliteTransaction(connection)


def problems(tx: Transaction) -> list[str]:
    """What does not add up in a store; empty when all does."""
    tasks = tx.tasks(tenant=None, model=None, state=None, limit=1_000_000, before=None)
    found = [problem for task in tasks for problem in _problems_of(tx, task)]
    for model in {task.model for task in tasks}:
        for flow in tx.flows(model):
            own = [task for task in tasks if (task.model, task.tenant) == (model, flow.tenant)]
            num_queued = sum(task.state is TaskState.QUEUED for task in own)
            charged = sum(task.charged_cost for task in own)
            if (flow.num_queued, flow.charged_cost) != (num_queued, charged):
                found.append(f"{flow} should have {num_queued} queued and {charged} charged")
    return found


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
    if not is_leased and (task.charged_virtual_time or task.charged_cost != task.settled_cost):
        yield f"{task.id} is {task.state.value} and not settled"
    attempts = tx.attempts(task.id)
    if [a.fence for a in attempts] != list(range(1, task.fence + 1)):
        yield f"{task.id} at fence {task.fence} has attempts {attempts}"
    running = [a.fence for a in attempts if a.outcome == "running"]
    if running != ([task.fence] if is_leased else []):
        yield f"{task.id} is {task.state.value} with attempts {running} running"
