"""What is simulated: everything a seed decides before the first moment.

Not every seed has every fault (swarm testing): a run in which everything fails all the time never
gets to the states that need some of it to work.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

MODEL = "demo"

#: What may go wrong at moments of its own, with its mean interval in seconds of virtual time.
EVENTS = {
    "control plane crashed": 12.0,
    "runner crashed": 12.0,
    "runner gone for good": 40.0,
    "runner stalled": 15.0,
    "worker lost": 6.0,
    "stream broke": 6.0,
    "stream half open": 8.0,
    "network stalled": 20.0,
    "store refused for a while": 25.0,
    "clock jumped": 15.0,
    "operator changed a tenant": 15.0,
}
#: What may go wrong with a call or a command, with its probability.
CHANCES = {
    "request lost": 0.05,
    "answer lost": 0.05,
    "request repeated": 0.08,
    "request delayed": 0.10,
    "watcher's stream broke": 0.04,
    "news lost": 0.05,
    "store was slow": 0.01,
    "store refused": 0.03,
    "store wrote and lost its answer": 0.03,
    "crashed before a command": 0.004,
    "crashed after a command": 0.004,
}


@dataclass(frozen=True)
class Tenant:
    name: str
    weight_permille: int
    priority_classes: tuple[str, ...]
    #: Tasks that it sends, and seconds between two on average; 0: all at once.
    num_tasks: int
    interval_s: float
    #: New tokens of a task, at most.
    max_tokens: int
    #: What it estimates, in parts of the true cost.
    estimates: tuple[float, ...]
    max_in_flight: int | None
    max_queued: int | None
    cost_per_minute: int | None


@dataclass(frozen=True)
class Scenario:
    seed: str
    policy: str
    num_control_planes: int
    #: How many tasks each runner's replica takes at once.
    capacities: tuple[int, ...]
    tenants: tuple[Tenant, ...]
    #: Those faults of ``EVENTS`` and ``CHANCES`` that happen here.
    faults: frozenset[str]
    #: Seconds of virtual time with faults; afterwards everything works.
    disturbed_s: float
    max_attempts: int
    #: Part of the tasks that are cancelled, paused, expected by a deadline, and so on.
    meddling: float

    def __str__(self) -> str:
        tenants = "+".join(str(tenant.num_tasks) for tenant in self.tenants)
        return (
            f"{self.policy}, {self.num_control_planes} control planes, runners of"
            f" {'+'.join(map(str, self.capacities))}, {tenants} tasks, {len(self.faults)} kinds of"
            f" fault for {self.disturbed_s:.0f} s"
        )


def draw(seed: str) -> Scenario:
    """The scenario of a seed."""
    rng = random.Random(seed)
    is_fairness_run = rng.random() < 0.3
    tenants = _contenders(rng) if is_fairness_run else _mixed(rng)
    kinds = [*EVENTS, *CHANCES]
    faults = frozenset(kind for kind in kinds if rng.random() < (0.25 if is_fairness_run else 0.7))
    return Scenario(
        seed=seed,
        policy=rng.choice(["virtual_time"] * 6 + ["deficit_round_robin", "fcfs"]),
        num_control_planes=rng.choice([1, 1, 2, 3]),
        capacities=(1, 1)
        if is_fairness_run
        else tuple(rng.choices([1, 2, 3], k=rng.randint(1, 3))),
        tenants=tenants,
        faults=faults,
        disturbed_s=rng.uniform(40, 90),
        max_attempts=rng.choice([2, 3, 5, 8]),
        meddling=0.1 if is_fairness_run else rng.choice([0.0, 0.3, 0.6]),
    )


def _mixed(rng: random.Random) -> tuple[Tenant, ...]:
    return tuple(
        Tenant(
            name=name,
            weight_permille=rng.choice([500, 1000, 1000, 3000]),
            priority_classes=rng.choice(
                [("standard",), ("interactive", "batch"), ("standard", "batch")]
            ),
            num_tasks=rng.randint(4, 16),
            interval_s=rng.choice([0.0, 1.0, 5.0]),
            max_tokens=rng.choice([4, 12, 24]),
            estimates=(0.5, 1.0, 1.0, 2.0),
            max_in_flight=rng.choice([None, None, 1, 2]),
            max_queued=rng.choice([None, None, None, 4]),
            cost_per_minute=rng.choice([None, None, None, 200]),
        )
        for name in ("ann", "bob", "cyd", "dan")[: rng.randint(2, 4)]
    )


def _contenders(rng: random.Random) -> tuple[Tenant, ...]:
    """Few tenants that always have something queued: who is treated unfairly shows.

    Classes share by weight, so the heavier one has to be served that much more before it shows that
    the lighter one is not: two classes have more to do, and their weights are not far apart.
    """
    classes = rng.choice([("standard",), ("standard", "batch")])
    estimates = rng.choice([(1.0,), (1.0,), (0.5, 1.0, 2.0)])
    return tuple(
        Tenant(
            name=name,
            weight_permille=rng.choice([1000, 1000, 3000]),
            priority_classes=classes,
            num_tasks=rng.randint(40, 60) * len(classes),
            interval_s=0.0,
            max_tokens=3,
            estimates=estimates,
            max_in_flight=None,
            max_queued=None,
            cost_per_minute=None,
        )
        for name in ("ann", "bob")
    )
