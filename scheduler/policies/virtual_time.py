"""Fair sharing by virtual time: start-time fair queueing with settlement.

Each flow carries a *virtual time*: the cost it has been served, divided by its weight. The flow
with the least goes next, so flows that stay busy receive service in proportion to their weights,
whatever the others send and however fast the servers are. A claim is charged with its estimate at
once, so that a burst cannot slip through before its cost is known, and settled with the measured
cost at the end.

It does not know tasks, the store or the time.
"""

from __future__ import annotations

from scheduler.policies import base

#: Units of virtual time in one weighted token at weight 1. Integers keep refunds exact; 64 bits
#: hold nine trillion weighted tokens of a tenant at the least weight.
SCALE = 1000


class Policy(base.Policy):
    """Weighted virtual time with lift."""

    def price(self, cost: int, weight_permille: int) -> int:
        return cost * 1000 * SCALE // weight_permille

    def join(self, virtual_time: int, least_active: int | None, floor: int) -> int:
        # Silence earns nothing: otherwise a tenant away for an hour would return with an hour of
        # exclusive service owed to it. Debts are kept: the flow may stand above the others.
        return max(virtual_time, floor if least_active is None else least_active)
