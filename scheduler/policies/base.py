"""What a fairness policy decides: which flow of a band goes next, and what service costs it.

A policy works on two integers that every flow has in the store, ``virtual_time`` and ``deficit``,
and on its band's ``virtual_floor``; the store's index answers which flow that takes part has the
least virtual time. It is pure but for the transaction it is given: no clock, no randomness, no
floating point, so that a restart and another control plane decide alike.

A policy is a class named ``Policy`` in a file of this folder, and the file's name is what the
setting ``policy`` calls it. The executable form of this contract is
``tests/contracts/test_policy_contract.py``; that the bound which each states holds is shown by
``tests/properties/test_fair_sharing.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from scheduler.flow import Ahead, Band, Flow
from scheduler.stores.base import Transaction
from scheduler.task import Task


@dataclass(frozen=True, slots=True)
class Load:
    """What the bound of a policy depends on, in weighted tokens; never how fast anything is, how
    many tasks there are, or how long it goes on."""

    #: E, the largest charge at a claim.
    charge: float
    #: D+ and D-, the most that an attempt used beyond its charge, and the most it gave back.
    excess: float
    refund: float
    #: K, the most tasks of one flow in flight at once.
    num_in_flight: int
    #: Weight of every flow, in thousandths, by tenant.
    weights_permille: Mapping[str, int]
    #: Largest factor by which a weight was lowered meanwhile; ``weights_permille`` are the least.
    lowered: float = 1.0
    #: Whether flows may be overtaken.
    has_overtaking: bool = False


class Policy(Protocol):
    """Chooses between the flows of a band."""

    #: Whether the last slots are kept for those who come.
    keeps_slots: bool

    def price(self, cost: int, weight_permille: int) -> int:
        """What ``cost`` adds to a flow of that weight; negative for a refund.

        It is kept with the task, so that a refund is exact although the weight has changed.
        """
        ...

    def charge(self, flow: Flow, price: int) -> Flow:
        """The flow after it was charged; it may have nothing queued."""
        ...

    def join(self, tx: Transaction, flow: Flow, band: Band) -> tuple[Flow, Band]:
        """The flow and its band as it begins to take part; neither is in the store yet."""
        ...

    def next(self, tx: Transaction, band: Band) -> Flow | None:
        """The flow that goes next; None when none takes part. It may have been written."""
        ...

    def served(self, tx: Transaction, flow: Flow) -> Flow:
        """The flow after its head has left its queue and it goes on taking part."""
        ...

    def leave(self, flow: Flow, band: Band) -> Band:
        """The band after the last flow that took part has left it."""
        ...

    def may_overtake(self, tx: Transaction, front: Flow, flow: Flow) -> bool:
        """Whether ``flow`` may go before ``front``, which is the next: for the sake of those who
        come, and no further than by one task."""
        ...

    def bound(self, load: Load) -> dict[str, float] | None:
        """How unfair it can be: while two flows of a band both take part, what they are charged,
        divided by their weights, drifts apart by no more than the sum of their two bounds.

        Returns:
            The bound of each flow of ``load``, in weighted tokens at weight 1; None: it has none.
        """
        ...

    def before(self, tx: Transaction, task: Task, flow: Flow, band: Band, cost: int) -> Ahead:
        """An estimate of what other flows of the band send before the task, when ``cost`` goes
        before it in its own; nothing new coming in, and every cost being what was estimated."""
        ...
