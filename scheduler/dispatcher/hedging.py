"""Decides which tasks are handed to another replica because their first token is overdue.

Measured is how long grants of a model take from being sent to their first chunk. A short task of
the interactive class in a flaky container that takes longer than 95 of 100 did may be handed over:
likely its container is gone, and nobody has noticed yet. Whether it is one decides the store, under
the task's fencing token. At most one grant in twenty is handed over, so that a model that became
slow everywhere is not made slower. Moments are handed in.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from scheduler.dispatcher.sessions import LeaseKey, Slot
from scheduler.task import Task

#: The class that hedging is for, and the longest prompt, in weighted tokens, that is worth it.
HEDGED_CLASS: Final = "interactive"
MAX_PROMPT_COST: Final = 2048
#: Grants that are remembered of a model, and fewest from which anything is concluded.
_REMEMBERED: Final = 200
_FEWEST: Final = 20
_LATE_SHARE: Final = 0.95
#: Hand-overs for each grant, and most that may be saved up.
_SHARE: Final = 0.05
_MOST_SAVED: Final = 5.0


@dataclass(frozen=True, slots=True)
class Waiting:
    """A grant whose first chunk has not come."""

    lease: LeaseKey
    model: str
    runner_id: str
    granted_at: float
    #: Whether it may be handed over.
    may_go: bool


class Hedges:
    """The grants whose first chunk is awaited."""

    def __init__(self) -> None:
        self._waiting: dict[LeaseKey, Waiting] = {}
        self._times_s: dict[str, deque[float]] = {}
        self._saved = 0.0

    def __repr__(self) -> str:
        return f"<Hedges waiting={len(self._waiting)} saved={self._saved:.2f}>"

    @property
    def is_watching(self) -> bool:
        """Whether any that is awaited might be handed over."""
        return any(waiting.may_go for waiting in self._waiting.values())

    def granted(self, slot: Slot, task: Task, now: float, *, is_flaky: bool) -> None:
        """A task was granted, to a container that is flaky or not."""
        is_short = task.prompt_cost <= MAX_PROMPT_COST and not task.num_chunks
        may_go = is_flaky and is_short and task.priority_class == HEDGED_CLASS
        lease = LeaseKey(task.id, task.fence)
        self._waiting[lease] = Waiting(lease, task.model, slot.runner_id, now, may_go)
        self._saved = min(_MOST_SAVED, self._saved + _SHARE)

    def begun(self, lease: LeaseKey, now: float) -> None:
        """A chunk of a lease came."""
        if (waiting := self._waiting.pop(lease, None)) is not None:
            times = self._times_s.setdefault(waiting.model, deque(maxlen=_REMEMBERED))
            times.append(now - waiting.granted_at)

    def ended(self, lease: LeaseKey) -> None:
        """A lease is over."""
        self._waiting.pop(lease, None)

    def overdue(self, now: float) -> list[Waiting]:
        """Grants that may be handed over now, the one that waited longest first."""
        if self._saved < 1.0:
            return []
        late = [w for w in self._waiting.values() if w.may_go and self._is_late(w, now)]
        return sorted(late, key=lambda w: w.granted_at)[: int(self._saved)]

    def handed_over(self) -> None:
        """One was."""
        self._saved -= 1.0

    def _is_late(self, waiting: Waiting, now: float) -> bool:
        times = self._times_s.get(waiting.model, ())
        if len(times) < _FEWEST:
            return False
        usual = sorted(times)[int(_LATE_SHARE * len(times))]
        return now - waiting.granted_at > usual
