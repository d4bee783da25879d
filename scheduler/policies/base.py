"""What a fairness policy decides: what service costs a flow, and where a returning flow joins.

A policy is pure: integers in, integers out. The fair queue keeps its numbers in the store and the
store's index answers which active flow has the least. What a policy promises is written down as
``tests/properties/test_fair_sharing.py``.
"""

from __future__ import annotations

from typing import Protocol


class Policy(Protocol):
    """Chooses between flows by a number, the virtual time: the least goes next."""

    def price(self, cost: int, weight_permille: int) -> int:
        """Virtual time that ``cost`` adds to a flow of that weight; negative for a refund."""
        ...

    def join(self, virtual_time: int, least_active: int | None, floor: int) -> int:
        """Virtual time of a flow that becomes active.

        ``least_active`` is that of the least active flow, None when there is none; ``floor`` is
        where the pool stood when its last active flow left.
        """
        ...
