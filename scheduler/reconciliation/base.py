"""What a check is: it looks at one kind of drift, puts it right, and says what it found.

Three rules hold for every check. What it changes of a task it changes through the ledger's moves,
in batches, so that several control planes may run it at the same time. It is idempotent: a second
look finds nothing. And it is cheap on a million tasks: it asks an index, or looks at a page of rows
and goes on from there the next time, unless it is asked to look at the whole.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

from scheduler import cluster_view
from scheduler.autoscaler.placement import Plan
from scheduler.bulk_book import BulkBook
from scheduler.clock import SteadyClock
from scheduler.drift import Finding
from scheduler.node_book import NodeBook
from scheduler.task_book import TaskBook

#: What a finding is about that concerns the control plane which looks.
ITSELF = "this control plane"


class Cluster(cluster_view.Cluster, Protocol):
    """Whoever speaks with the runners."""

    def dismiss_silent(self) -> dict[str, float]:
        """End the streams of runners that have said nothing for too long; seconds by runner."""
        ...

    def forget_lost(self) -> list[str]:
        """Forget runners that have been away for too long; their ids."""
        ...

    def leases(self, runner_id: str) -> set[tuple[str, int]]:
        """Leases (task, fence) that the runner has, as far as this control plane knows."""
        ...

    def want_again(self, runner_id: str) -> None:
        """Tell a runner once more what it should run."""
        ...


@dataclass(frozen=True, slots=True)
class Parts:
    """What checks look at and act through."""

    book: TaskBook
    bulks: BulkBook
    nodes: NodeBook
    clock: SteadyClock
    cluster: Cluster
    #: What every runner should run, and why fewer run than are wanted, as it was decided last.
    plan: Callable[[], Plan]
    #: Seconds between two heartbeats of a runner.
    heartbeat_s: float = 2.0
    #: Seconds for which a task is kept after its end; 0: for ever.
    retention_s: float = 0.0


class Check(ABC):
    """One kind of drift."""

    #: What it is called everywhere.
    name: ClassVar[str]
    #: What it looks at, and what it does about what it finds; for a person.
    looks_at: ClassVar[str]
    repair: ClassVar[str]
    #: Seconds between two looks.
    every_s: ClassVar[float]

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def __repr__(self) -> str:
        return f"<Check {self.name}>"

    @abstractmethod
    async def look(self) -> list[Finding]:
        """Find, and repair; what goes through rows page by page looks at the next page.

        Raises:
            StoreUnavailable: the store refused; whatever was not done is found at the next look.
        """

    async def look_at_all(self) -> list[Finding]:
        """The same, of all pages. Raises StoreUnavailable."""
        return await self.look()
