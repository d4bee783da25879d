"""The list of checks, in the order in which they look.

Clocks come first, since others judge by them. Then the flows' counts: a move of a task whose flow
counts wrong would be refused by the store.
"""

from __future__ import annotations

from typing import Final

from scheduler.reconciliation.base import Check, Parts
from scheduler.reconciliation.clocks import ClockSkew
from scheduler.reconciliation.cluster import (
    DevicesCountedTwice,
    ReplicasShort,
    StaleRegistrations,
    WorkersNobodyAskedFor,
)
from scheduler.reconciliation.flows import FlowsThatMiscount
from scheduler.reconciliation.housekeeping import BulksLeftOpen, EndedLongAgo
from scheduler.reconciliation.leases import (
    DeadlinesPassed,
    ExpiredLeases,
    PausesOver,
    TasksHeldByNobody,
)
from scheduler.reconciliation.rows import (
    JournalsWithoutChunks,
    JournalsWithoutOwner,
    ResultsWithoutTask,
    TasksWithoutRequest,
)

CHECKS: Final[tuple[type[Check], ...]] = (
    ClockSkew,
    FlowsThatMiscount,
    DeadlinesPassed,
    ExpiredLeases,
    TasksHeldByNobody,
    PausesOver,
    TasksWithoutRequest,
    ResultsWithoutTask,
    JournalsWithoutOwner,
    JournalsWithoutChunks,
    StaleRegistrations,
    DevicesCountedTwice,
    WorkersNobodyAskedFor,
    ReplicasShort,
    BulksLeftOpen,
    EndedLongAgo,
)


def all_checks(parts: Parts) -> list[Check]:
    """One of each."""
    return [check(parts) for check in CHECKS]
