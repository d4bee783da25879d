"""Decides how many free slots are kept for those who come.

A slot that is taken is not free again before its task ends, so a tenant that floods a model would
make everybody else wait for one of its own to end, however fair the order. While several tenants
have been served lately, the last few slots of a model are given only to flows that hold less than
half of all; a tenant alone may have them all. Moments are handed in; this reads no clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from scheduler.cluster_view import kept_slots, most_leased

#: Seconds after its last grant in which a tenant counts as one that may come again: as long may a
#: slot stand idle for it.
_WINDOW_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Offer:
    """What may be claimed now."""

    #: Most tasks.
    limit: int
    #: Only of flows with fewer in flight; None: of all.
    most_leased: int | None = None


class Headroom:
    """Who was served lately, by model."""

    def __init__(self) -> None:
        self._served_at: dict[str, dict[str, float]] = {}

    def __repr__(self) -> str:
        return f"<Headroom models={len(self._served_at)}>"

    def served(self, model: str, tenant: str, now: float) -> None:
        """A task of the tenant was granted."""
        self._served_at.setdefault(model, {})[tenant] = now

    def offer(self, model: str, limit: int, free: int, capacity: int, now: float) -> Offer:
        """What of a replica's room may be claimed.

        Args:
            limit: tasks the replica may be given.
            free, capacity: slots of all replicas of the model.
        """
        kept = kept_slots(capacity)
        if kept <= 0 or self._num_tenants(model, now) < 2:
            return Offer(limit)
        if free > kept:
            return Offer(min(limit, free - kept))
        return Offer(limit, most_leased(capacity))

    def _num_tenants(self, model: str, now: float) -> int:
        served = self._served_at.get(model, {})
        for tenant in [name for name, at in served.items() if now - at > _WINDOW_S]:
            del served[tenant]
        return len(served)
