"""Flows and the classes they belong to: who waits for a model, and what each has been charged.

A *flow* is one tenant's queued tasks of one priority class for one model; a *band* is one class of
one model, with all its flows. Bands share a model by the weights of their classes, the flows of a
band share what it gets by the weights of their tenants. Each model is a link of its own: a tenant
that is busy on one model is not held back on another.

A flow with something queued takes part, unless it is *held*, because its tenant has as much in
flight as it may; only flows and bands that take part are compared with one another.
"""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.records import Record

#: Weight of a tenant or a class for which nothing else was set, in thousandths.
DEFAULT_WEIGHT_PERMILLE = 1000

#: The classes there are at first, with their weights in thousandths. A class is guaranteed its
#: weight's share of a model while it has work, however much the others have.
CLASS_WEIGHTS = {"interactive": 16_000, "standard": 4_000, "batch": 1_000}
DEFAULT_CLASS = "standard"
#: Class of the tasks of a bulk when nothing else is said.
BULK_CLASS = "batch"


class Flow(Record, frozen=True):
    """A flow as it stands on disk; one that was never used is all zeros."""

    model: str
    priority_class: str
    tenant: str
    #: What the policy compares: the least goes next. In the policy's own integer unit.
    virtual_time: int = 0
    #: What the policy keeps beside it; 0 where it keeps nothing.
    deficit: int = 0
    num_queued: int = 0
    #: Estimated cost of what is queued, in weighted tokens.
    queued_cost: int = 0
    num_leased: int = 0
    #: Cost charged so far, in weighted tokens.
    charged_cost: int = 0
    #: Whether its tenant has as much in flight as it may.
    is_held: bool = False

    @property
    def is_active(self) -> bool:
        """Whether the flow takes part in the choice of what goes next."""
        return self.num_queued > 0 and not self.is_held


class Band(Record, frozen=True):
    """A class of one model as it stands on disk."""

    model: str
    priority_class: str
    #: Cost served divided by the class's weight.
    virtual_time: int = 0
    #: Flows that take part.
    num_active: int = 0
    #: Where its flows' virtual time stood when the last of them left.
    virtual_floor: int = 0
    #: The policy in whose units its flows are accounted for; empty: there were none yet.
    policy: str = ""
    #: Where it was lifted to when it began to take part, until it is charged; None: not at all.
    lifted_to: int | None = None

    @property
    def is_fresh(self) -> bool:
        """Whether it stands where it was lifted to, and has not been served since."""
        return self.virtual_time == self.lifted_to


class Tenant(Record, frozen=True):
    """Whom work is accounted to, as operators have set it up; None is no limit."""

    name: str
    weight_permille: int = DEFAULT_WEIGHT_PERMILLE
    #: Tasks that may wait at once.
    max_queued: int | None = None
    #: Tasks that may be leased at once.
    max_in_flight: int | None = None
    #: Estimated cost that may be submitted in a minute, in weighted tokens.
    cost_per_minute: int | None = None
    #: Priority classes its tasks may be in; None: all.
    classes: tuple[str, ...] | None = None
    #: Estimated cost it may submit at once, at ``allowance_at``; refilled by ``cost_per_minute``.
    allowance: float = 0.0
    allowance_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Usage:
    """What a tenant has in the queue and in flight, over all models."""

    num_queued: int = 0
    queued_cost: int = 0
    num_leased: int = 0


@dataclass(frozen=True, slots=True)
class Ahead:
    """What goes before a task, as far as can be told now."""

    num_tasks: int = 0
    #: Their estimated cost, in weighted tokens.
    cost: int = 0
    #: Flows that have any of it.
    num_flows: int = 0
    #: Whether there may be more than was counted.
    is_at_least: bool = False


@dataclass(frozen=True, slots=True)
class Outlook:
    """What goes before a waiting task, by where it is."""

    #: In its own flow.
    flow: Ahead
    #: In other flows of its class.
    others: Ahead
    #: In other classes; those that are not before it are left out.
    classes: dict[str, Ahead]

    @property
    def num_tasks(self) -> int:
        return sum(part.num_tasks for part in self._parts())

    @property
    def cost(self) -> int:
        return sum(part.cost for part in self._parts())

    @property
    def is_at_least(self) -> bool:
        return any(part.is_at_least for part in self._parts())

    def _parts(self) -> tuple[Ahead, ...]:
        return self.flow, self.others, *self.classes.values()
