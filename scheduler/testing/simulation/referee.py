"""Judges who was served by the bounds that the policy and the classes state.

It counts the work that is on disk by itself, and takes from the queue only who takes part. While
two flows of a band both take part, what was done for them, divided by their weights, may drift
apart by the sum of their bounds and what is in flight; so may two bands, by the weights of their
classes. What the bounds depend on (largest charge, excess, refund, tasks in flight) is what has
been seen so far, so they are as tight as the run allows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from scheduler.flow import CLASS_WEIGHTS
from scheduler.policies import virtual_time
from scheduler.policies.base import Load, Policy

#: A flow (class, tenant), or a band (class,).
Name = tuple[str, ...]


@dataclass(slots=True)
class Drift:
    """How far two that both take part have come apart since they did."""

    low: float
    high: float

    def widened(self, gap: float) -> float:
        self.low, self.high = min(self.low, gap), max(self.high, gap)
        return self.high - self.low


@dataclass(slots=True)
class Seen:
    """What the bounds depend on, as far as it has happened."""

    charge: float = 0
    excess: float = 0
    refund: float = 0
    num_in_flight: int = 0
    #: Largest cost of a task.
    cost: float = 0

    def load(self, weights_permille: Mapping[str, int]) -> Load:
        charge, most = self.charge, self.num_in_flight
        return Load(
            charge, self.excess, self.refund, most, weights_permille, has_overtaking=True
        )


class Referee:
    """Watches one model."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.seen = Seen()
        self._done: dict[Name, float] = defaultdict(float)
        self._active: set[Name] = set()
        self._in_flight: dict[Name, int] = {}
        #: The least weight each tenant has had: old charges were made at it.
        self._weights: dict[str, int] = defaultdict(lambda: 1000)
        self._now: dict[str, int] = defaultdict(lambda: 1000)
        self._drifts: dict[tuple[Name, Name], Drift] = {}
        self._is_changed = False

    # -- what has happened

    def weight_set(self, tenant: str, weight_permille: int) -> None:
        self._weights[tenant] = min(self._weights[tenant], weight_permille)
        if self._now[tenant] != weight_permille:
            self._now[tenant] = weight_permille
            self._drifts.clear()

    def flow_moved(
        self, cls: str, tenant: str, _: int, num_queued: int, num_leased: int, is_held: int
    ) -> None:
        name = (cls, tenant)
        self._weights[tenant], self._now[tenant]  # noqa: B018  (a tenant for whom nothing was set)
        self._in_flight[name] = num_leased
        self.seen.num_in_flight = max(self.seen.num_in_flight, sum(self._in_flight.values()))
        self._takes_part(name, num_queued > 0 and not is_held)

    def band_moved(self, cls: str, _: int, num_active: int) -> None:
        self._takes_part((cls,), num_active > 0)

    def task_moved(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        """A task's row was written."""
        was_leased, is_leased = before["state"] == "leased", after["state"] == "leased"
        charged = after["charged_cost"] - before["charged_cost"]
        seen = self.seen
        if is_leased and not was_leased:
            seen.charge = max(seen.charge, charged)
        elif was_leased:
            seen.excess = max(seen.excess, charged)
            seen.refund = max(seen.refund, -charged)
        done = _used(after) - _used(before)
        if was_leased and not after["num_tokens"] and after["state"] in ("cancelled", "expired"):
            done += after["prompt_cost"]  # its owner took it away: the prompt is paid for
        seen.cost = max(seen.cost, _used(after))
        if done:
            self._done[after["priority_class"], after["tenant"]] += done
            self._done[after["priority_class"],] += done
            self._is_changed = True

    # -- what is wrong with it

    def look(self) -> list[str]:
        """What goes beyond the bounds after a command."""
        if not self._is_changed:
            return []
        self._is_changed = False
        return [*self._look_at_bands(), *self._look_at_flows()]

    def _look_at_bands(self) -> Iterator[str]:
        bands = sorted(name for name in self._active if len(name) == 1)
        weights = {cls: CLASS_WEIGHTS.get(cls, 1000) for (cls,) in bands}
        bound = virtual_time.Policy().bound(self.seen.load(weights))
        yield from self._compare(bands, {(cls,): weights[cls] for (cls,) in bands}, bound)

    def _look_at_flows(self) -> Iterator[str]:
        bound = self._policy.bound(self.seen.load(self._weights))
        if bound is None:
            return
        flows = sorted(name for name in self._active if len(name) == 2)
        for cls in sorted({name[0] for name in flows}):
            own = [name for name in flows if name[0] == cls]
            yield from self._compare(own, {name: self._now[name[1]] for name in own}, bound)

    def _compare(
        self, names: list[Name], weights: Mapping[Name, int], bound: Mapping[str, float] | None
    ) -> Iterator[str]:
        assert bound is not None
        in_flight = self.seen.num_in_flight * self.seen.cost
        for number, one in enumerate(names):
            for other in names[number + 1 :]:
                gap = 1000 * (self._done[one] / weights[one] - self._done[other] / weights[other])
                drift = self._drifts.setdefault((one, other), Drift(gap, gap)).widened(gap)
                allowed = sum(
                    bound[name[-1]] + 1000 * in_flight / weights[name] for name in (one, other)
                )
                if drift > allowed + 1:
                    yield f"{one} and {other} drifted {drift:.0f} apart, bound {allowed:.0f}"

    def _takes_part(self, name: Name, does: bool) -> None:
        if does:
            self._active.add(name)
            self._is_changed = True
        elif name in self._active:
            self._active.remove(name)
            self._drifts = {pair: d for pair, d in self._drifts.items() if name not in pair}


def _used(row: Mapping[str, Any]) -> float:
    """Cost of the output on disk: 2 for a token, and the prompt once there is any."""
    return float(row["prompt_cost"] + 2 * row["num_tokens"] if row["num_tokens"] else 0)



