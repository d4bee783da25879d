"""Whether tenants that were busy together were served by their weights, over long windows.

A tenant is *busy* while several of its tasks are accepted and have not begun, as far as its clients
know. In a window in which all contenders are busy, what they were served, divided by their weights,
may drift apart by what the policy's bound allows: a task and all that is in flight, of each. The
bound does not grow with the window, so the longer one is the more it says. Service is what the
model servers computed for the first time; what a fault had computed again is nobody's share.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TypeGuard

from scheduler.testing.chaos.history import (
    Accepted,
    Computed,
    History,
    Read,
    Record,
    Seen,
    Sent,
)

#: Tasks that wait, below which a tenant does not count as busy: its clients may know late.
MIN_WAITING = 3
#: Windows that are shorter say nothing.
MIN_WINDOW_S = 15.0


@dataclass(frozen=True, slots=True)
class Window:
    """A time in which all contenders were busy."""

    start: float
    end: float
    #: Tokens by tenant.
    served: Mapping[str, int]


def windows(history: History, contenders: Mapping[str, float]) -> list[Window]:
    """All windows that are long enough; ``contenders`` are weights by tenant."""
    found = []
    served = _served(history)
    for start, end in _busy_together(history, set(contenders)):
        if end - start >= MIN_WINDOW_S:
            own = {tenant: sum(start <= at < end for at in served[tenant]) for tenant in contenders}
            found.append(Window(start, end, own))
    return found


def unfair(history: History, contenders: Mapping[str, float], num_slots: int) -> list[str]:
    """Windows in which the bound was passed; ``num_slots`` are the tasks in flight at most."""
    sent = (record for record in history.records if isinstance(record, Sent))
    largest = max((record.document["max_new_tokens"] for record in sent), default=0)
    problems = []
    for window in windows(history, contenders):
        for one, other in combinations(contenders, 2):
            gap = abs(
                window.served[one] / contenders[one] - window.served[other] / contenders[other]
            )
            allowed = largest * (1 + num_slots) * (1 / contenders[one] + 1 / contenders[other])
            if gap > allowed:
                problems.append(
                    f"promise 5: from {window.start:.0f} to {window.end:.0f} s {one} and {other}"
                    f" were served {gap:.0f} tokens apart by weight, the bound is {allowed:.0f}"
                )
    return problems


def _busy_together(history: History, contenders: set[str]) -> Iterator[tuple[float, float]]:
    waiting: dict[str, int] = defaultdict(int)
    since: float | None = None
    at = 0.0
    for at, tenant, change in sorted(_waiting(history)):
        waiting[tenant] += change
        are_busy = all(waiting[each] >= MIN_WAITING for each in contenders)
        if are_busy and since is None:
            since = at
        elif not are_busy and since is not None:
            yield since, at
            since = None
    if since is not None:
        yield since, at


def _waiting(history: History) -> Iterator[tuple[float, str, int]]:
    """Moments at which a task began to wait, or was seen to have begun or ended."""
    owner = {record.key: record.tenant for record in history.records if isinstance(record, Sent)}
    waiting: dict[str, str] = {}
    known: set[str] = set()
    for record in history.records:
        if isinstance(record, Accepted) and record.task_id not in known:
            known.add(record.task_id)
            waiting[record.task_id] = owner[record.key]
            yield record.at, owner[record.key], 1
        elif _has_begun(record) and record.task_id in waiting:
            yield record.at, waiting.pop(record.task_id), -1


def _has_begun(record: Record) -> TypeGuard[Read | Seen]:
    """Whether it tells that a task is not waiting for its first turn any more."""
    return isinstance(record, Read) or (isinstance(record, Seen) and record.state != "queued")


def _served(history: History) -> dict[str, list[float]]:
    """When each tenant's tokens were computed for the first time."""
    sent = (record for record in history.records if isinstance(record, Sent))
    owner = {record.document["seed"]: record.tenant for record in sent}
    first: dict[tuple[int, int], float] = {}
    for record in history.records:
        if isinstance(record, Computed) and record.seed in owner:
            key = record.seed, record.position
            first[key] = min(record.at, first.get(key, record.at))
    served: dict[str, list[float]] = defaultdict(list)
    for (seed, _), at in first.items():
        served[owner[seed]].append(at)
    return served
