"""What a fairness policy decides: which flow of a band goes next, and what service costs it.

A policy works on two integers that every flow has in the store, ``virtual_time`` and ``deficit``,
and on its band's ``virtual_floor``; the store's index answers which flow that takes part has the
least virtual time. It is pure but for the transaction it is given: no clock, no randomness, no
floating point, so that a restart and another control plane decide alike.

A policy is a class named ``Policy`` in a file of this folder, and the file's name is what the
setting ``policy`` calls it. The executable form of this contract is
``tests/contracts/test_policy_contract.py``; what each promises beyond it, its bound, is
``tests/properties/test_fair_sharing.py``.
"""

from __future__ import annotations

from typing import Protocol

from scheduler.flow import Ahead, Band, Flow
from scheduler.stores.base import Transaction
from scheduler.task import Task


class Policy(Protocol):
    """Chooses between the flows of a band."""

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

    def before(self, tx: Transaction, task: Task, flow: Flow, band: Band, cost: int) -> Ahead:
        """An estimate of what other flows of the band send before the task, when ``cost`` goes
        before it in its own; nothing new coming in, and every cost being what was estimated."""
        ...
