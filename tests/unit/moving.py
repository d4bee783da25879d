"""Builders for tests of the moves."""

from __future__ import annotations

from scheduler import moves
from scheduler.stores.base import Transaction
from scheduler.task import Grant, Task
from scheduler.testing.tasks import MODEL, rules, submission

RULES = rules(max_attempts=2, lease_ttl_s=10.0)
NOW = 1000.0


def submit(tx: Transaction, task_id: str = "t1", tenant: str = "ann", **changes: object) -> Task:
    return moves.submit(tx, RULES, submission(tenant, **changes), task_id, NOW).value[0]


def claim(tx: Transaction, now: float = NOW, limit: int = 1) -> list[Grant]:
    return moves.claim(tx, RULES, MODEL, "runner-1", "demo__r0", limit, now).value
