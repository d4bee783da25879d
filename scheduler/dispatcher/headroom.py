"""Decides how many free slots are kept for those who come.

A slot that is taken is not free again before its task ends, so a tenant that floods a model would
make everybody else wait for one of its own to end, however fair the order. While several tenants
have been served lately, the last few slots of a model are given only to flows that hold less than
half of all; a tenant alone may have them all.

A slot kept is work not done, so no more of it is given up than helps:

- A slot whose task is about to end (``course.py``) is as good as a free one: while there is one,
  what is free may go. Who comes then waits for that end, too short to notice; and the next task
  is on its way before the slot is empty.
- Over any time a model keeps no more than one in ``SLOTS_PER_KEPT`` of its slots' seconds from
  those who wait, but for what it has saved up, which is no more than ``_WINDOW_S`` of that. With
  fewer slots one cannot be kept all the time: of 16 every other second, of two for two seconds
  once and then every sixteenth.

Moments are handed in; this reads no clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from scheduler.cluster_view import SLOTS_PER_KEPT, kept_slots, most_leased
from scheduler.dispatcher.sessions import Room

#: Seconds after its last grant in which a tenant counts as one that may come again, and over which
#: a model saves up what it may keep.
_WINDOW_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Offer:
    """What may be claimed now."""

    #: Most tasks.
    limit: int
    #: Only of flows with fewer in flight; None: of all.
    most_leased: int | None = None


@dataclass(slots=True)
class _Account:
    """What is known of one model."""

    served_at: dict[str, float] = field(default_factory=dict)
    #: Slot seconds that may yet be kept, as far as they can be saved up.
    saved_slot_s: float = math.inf
    #: Slots that somebody is kept from since ``counted_at``.
    num_kept: int = 0
    counted_at: float = 0.0

    def count(self, capacity: int, now: float) -> float:
        """Slot seconds that may be kept now; below 0: it has been too many."""
        share = capacity / SLOTS_PER_KEPT
        saved = self.saved_slot_s + (share - self.num_kept) * (now - self.counted_at)
        self.saved_slot_s, self.counted_at = min(saved, share * _WINDOW_S), now
        return self.saved_slot_s

    def num_tenants(self, now: float) -> int:
        """Tenants that were served lately."""
        for tenant in [name for name, at in self.served_at.items() if now - at > _WINDOW_S]:
            del self.served_at[tenant]
        return len(self.served_at)


class Headroom:
    """Who was served lately and what was kept, by model."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}

    def __repr__(self) -> str:
        return f"<Headroom models={len(self._accounts)}>"

    def served(self, model: str, tenant: str, now: float) -> None:
        """A task of the tenant was granted."""
        self._account(model).served_at[tenant] = now

    def offer(self, model: str, limit: int, room: Room, now: float) -> Offer:
        """What of a replica's room, which is for up to ``limit`` tasks, may be claimed; ``room`` is
        that of all replicas of the model."""
        account, kept = self._account(model), kept_slots(room.capacity)
        may_keep = account.count(room.capacity, now) > 0 and account.num_tenants(now) > 1
        if kept <= 0 or not may_keep:
            return Offer(limit)
        spare = min(room.free, room.free + room.ending - kept)
        if spare > 0:
            return Offer(min(limit, spare))
        return Offer(limit, most_leased(room.capacity))

    def kept(self, model: str, num_slots: int, capacity: int, now: float) -> None:
        """From now on somebody waits beside so many free slots that are kept."""
        account = self._account(model)
        account.count(capacity, now)
        account.num_kept = num_slots

    def is_keeping(self, model: str) -> bool:
        """Whether somebody waits beside a free slot."""
        return self._account(model).num_kept > 0

    def _account(self, model: str) -> _Account:
        return self._accounts.setdefault(model, _Account())
