"""A flow: one tenant's queued tasks for one model, and what the tenant has been charged there.

Each model is a link of its own: a tenant that is busy on one model is not held back on another.
A flow with something queued is *active*; only active flows are compared with one another.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Weight of a tenant for whom nothing else was set, in thousandths.
DEFAULT_WEIGHT_PERMILLE = 1000


@dataclass(frozen=True, slots=True)
class Flow:
    """A flow as it stands on disk; one that was never used is all zeros."""

    model: str
    tenant: str
    #: Cost served divided by weight, in the policy's own integer unit.
    virtual_time: int = 0
    num_queued: int = 0
    #: Cost charged so far, in weighted tokens.
    charged_cost: int = 0

    @property
    def is_active(self) -> bool:
        """Whether the flow takes part in the choice of what goes next."""
        return self.num_queued > 0
