"""Judges who was served by the bounds that the policy and the classes state.

It counts the work that is on disk by itself, and takes from the queue only who takes part. While
two flows of a band both take part, what they were charged, divided by their weights, may drift
apart by the sum of their bounds, and what was done for them by what is in flight beyond that; so
may two bands, by the weights of their classes. What the bounds depend on (largest charge, excess,
refund, tasks in flight) is what has been seen so far, so they are as tight as the run allows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
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

    #: Largest factor by which a tenant's weight was lowered.
    lowered: float = 1.0
    #: Whether flows may be overtaken.
    has_overtaking: bool = True

    def load(self, weights_permille: Mapping[str, int]) -> Load:
        return Load(
            self.charge,
            self.excess,
            self.refund,
            self.num_in_flight,
            weights_permille,
            self.lowered,
            self.has_overtaking,
        )


class Referee:
    """Watches one model."""

    def __init__(self, policy: Policy, *, has_overtaking: bool = True) -> None:
        self._policy = policy
        self.seen = Seen(has_overtaking=has_overtaking)
        #: Largest part of a bound that a drift has reached.
        self.closest = 0.0
        #: Cost of the work on disk, and what was charged for it, of each flow and band.
        self.done: dict[Name, float] = defaultdict(float)
        self.charged: dict[Name, float] = defaultdict(float)
        self._active: set[Name] = set()
        #: What each task had been charged when its last attempt began.
        self._at_claim: dict[str, int] = {}
        self._in_flight: dict[Name, int] = {}
        #: The least weight each tenant has had: old charges were made at it.
        self._weights: dict[str, int] = defaultdict(lambda: 1000)
        self._most: dict[str, int] = defaultdict(int)
        self._now: dict[str, int] = defaultdict(lambda: 1000)
        self._drifts: dict[tuple[Name, Name], tuple[Drift, Drift]] = {}
        self._is_changed = False

    # -- what has happened

    def weight_set(self, tenant: str, weight_permille: int) -> None:
        least = self._weights[tenant] = min(self._weights[tenant], weight_permille)
        most = self._most[tenant] = max(self._most[tenant], weight_permille)
        self.seen.lowered = max(self.seen.lowered, most / least)
        if self._now[tenant] != weight_permille:
            self._now[tenant] = weight_permille
            self._drifts.clear()

    def flow_moved(
        self, cls: str, tenant: str, _: int, num_queued: int, num_leased: int, is_held: int
    ) -> None:
        name = (cls, tenant)
        self._weights.setdefault(tenant, 1000)  # nothing was set for it
        self._in_flight[name] = num_leased
        self.seen.num_in_flight = max(self.seen.num_in_flight, sum(self._in_flight.values()))
        self._takes_part(name, num_queued > 0 and not is_held)

    def band_moved(self, cls: str, _: int, num_active: int) -> None:
        self._takes_part((cls,), num_active > 0)

    def task_accepted(self, estimated_cost: int) -> None:
        """A task waits; a policy may look at what it will be charged before it is."""
        self.seen.charge = max(self.seen.charge, estimated_cost)

    def task_moved(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        """A task's row was written."""
        was_leased, is_leased = before["state"] == "leased", after["state"] == "leased"
        charged = after["charged_cost"] - before["charged_cost"]
        seen = self.seen
        if is_leased and not was_leased:
            seen.charge = max(seen.charge, charged)
            self._at_claim[after["id"]] = after["charged_cost"]
        elif was_leased:
            # A journal that grows is charged for bit by bit: the attempt's excess is all of it.
            excess = after["charged_cost"] - self._at_claim[after["id"]]
            seen.excess = max(seen.excess, excess)
            seen.refund = max(seen.refund, -charged)
        done = _used(after) - _used(before)
        if was_leased and not after["num_tokens"] and after["state"] in ("cancelled", "expired"):
            done += after["prompt_cost"]  # its owner took it away: the prompt is paid for
        seen.cost = max(seen.cost, _used(after))
        if done or charged:
            for name in ((after["priority_class"], after["tenant"]), (after["priority_class"],)):
                self.done[name] += done
                self.charged[name] += charged
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
        self, names: Sequence[Name], weights: Mapping[Name, int], bound: Mapping[str, float] | None
    ) -> Iterator[str]:
        assert bound is not None
        in_flight = self.seen.num_in_flight * self.seen.cost
        for pair in combinations(names, 2):
            if pair not in self._drifts:
                gaps = [_gap(service, weights, pair) for service in (self.charged, self.done)]
                self._drifts[pair] = Drift(gaps[0], gaps[0]), Drift(gaps[1], gaps[1])
            charged, done = self._drifts[pair]
            allowed = sum(bound[name[-1]] for name in pair) + 1
            on_its_way = sum(1000 * in_flight / weights[name] for name in pair)
            for word, service, drift, most in (
                ("charged", self.charged, charged, allowed),
                ("served", self.done, done, allowed + on_its_way),
            ):
                apart = drift.widened(_gap(service, weights, pair))
                self.closest = max(self.closest, apart / most)
                if apart > most:
                    yield f"{pair[0]} and {pair[1]} are {word} {apart:.0f} apart, bound {most:.0f}"

    def _takes_part(self, name: Name, does: bool) -> None:
        if does:
            self._active.add(name)
            self._is_changed = True
        elif name in self._active:
            self._active.remove(name)
            self._drifts = {pair: d for pair, d in self._drifts.items() if name not in pair}


def _gap(
    service: Mapping[Name, float], weights: Mapping[Name, int], pair: tuple[Name, Name]
) -> float:
    one, other = (1000 * service[name] / weights[name] for name in pair)
    return one - other


def _used(row: Mapping[str, Any]) -> float:
    """Cost of the output on disk, and of the prompt once there is any."""
    if not row["num_tokens"]:
        return 0.0
    return float(row["prompt_cost"] + row["cost_per_token"] * row["num_tokens"])
