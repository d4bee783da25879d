"""What will happen in a run: everything that a seed decides before anything is started."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

from scheduler.testing.chaos.faults import EVERY_NODE, Kind

#: Requests a second, as parts of the most: the shape of AIBrix's autoscaling trace.
LOAD_SHAPE: Final = (1, 4, 8, 10, 2, 6)
#: Times that the shape is gone through, at least, and how long a step lasts at most.
_NUM_ROUNDS: Final = 2
_LONGEST_STEP_S: Final = 60.0
#: Seconds before the first fault, in which everything is well.
QUIET_S: Final = 5.0
#: Part of the planned faults that find nothing to hit, at most.
_SPARE: Final = 0.15


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who sends."""

    name: str
    weight: float
    #: Part of the requests that are its.
    share: float
    priority_class: str = "standard"
    #: Whether it sends so much that its share can be judged.
    is_contender: bool = True


#: Two that send as much as their weights allow them, so that both have work waiting when there is
#: more than can be done; one that sends little in a class of its own.
TENANTS: Final = (
    Tenant("ann", 1.0, 0.3),
    Tenant("bob", 2.0, 0.6),
    Tenant("cyd", 1.0, 0.1, "interactive", is_contender=False),
)


@dataclass(frozen=True, slots=True)
class Planned:
    """A fault that is to come."""

    at_s: float
    kind: str
    target: str
    duration_s: float
    #: From 0 to 1: how much of it.
    amount: float


@dataclass(frozen=True, slots=True)
class Arrival:
    """A task that is to be sent."""

    at_s: float
    tenant: Tenant
    seed: int
    num_tokens: int
    #: Chunks after which its reader leaves for a while, to come back with its cursor; None: never.
    leaves_after: int | None
    #: Seconds after which its owner takes it back; None: never.
    cancelled_after_s: float | None
    #: Whether it is sent a second time under the same key.
    is_sent_twice: bool


@dataclass(frozen=True, slots=True)
class Rescale:
    """An operator changes the number of replicas."""

    at_s: float
    num_replicas: int


@dataclass(frozen=True, slots=True)
class Scenario:
    """A run before it is run."""

    seed: int
    #: Seconds with load and faults.
    duration_s: float
    faults: tuple[Planned, ...]
    arrivals: tuple[Arrival, ...]
    rescales: tuple[Rescale, ...]
    #: Tasks that are done before anything is disturbed, where nobody knows what they answer; all
    #: others ask for the same. None: the answers are known.
    references: tuple[Arrival, ...] = ()


def draw(
    seed: int,
    kinds: Mapping[str, Kind],
    *,
    duration_s: float,
    num_faults: int,
    most_per_s: float,
    num_nodes: int,
    tokens: tuple[int, int] = (10, 60),
    num_references: int = 0,
) -> Scenario:
    """The scenario of a seed; ``most_per_s`` is the highest rate of requests."""
    # One stream of draws for each part: what one of them is changed to moves none of the others.
    parts = ("faults", "load", "scale", "references")
    streams = [random.Random(f"{seed} {part}") for part in parts]
    references = tuple(_reference(streams[3], tokens) for _ in range(num_references))
    arrivals = _arrivals(streams[1], duration_s, most_per_s, tokens)
    if references:
        arrivals = [_like(streams[3].choice(references), arrival) for arrival in arrivals]
    return Scenario(
        seed,
        duration_s,
        tuple(_faults(streams[0], kinds, duration_s, num_faults, num_nodes)),
        tuple(arrivals),
        tuple(_rescales(streams[2], duration_s, num_nodes)),
        references,
    )


def rates(duration_s: float, most_per_s: float) -> list[tuple[float, float]]:
    """When each step of the load begins, and its rate in requests a second."""
    num_rounds = max(_NUM_ROUNDS, round(duration_s / (_LONGEST_STEP_S * len(LOAD_SHAPE))))
    step_s = duration_s / (num_rounds * len(LOAD_SHAPE))
    steps = LOAD_SHAPE * num_rounds
    return [(i * step_s, most_per_s * part / max(LOAD_SHAPE)) for i, part in enumerate(steps)]


def _faults(
    rng: random.Random,
    kinds: Mapping[str, Kind],
    duration_s: float,
    num_faults: int,
    num_nodes: int,
) -> list[Planned]:
    count = round(num_faults * (1 + _SPARE)) + 1
    names = _spread(rng, kinds, count)
    moments = sorted(rng.uniform(QUIET_S, duration_s) for _ in names)
    planned = []
    for at_s, name in zip(moments, names, strict=True):
        kind = kinds[name]
        target = kind.target
        if target == EVERY_NODE:
            target = f"node-{rng.randint(1, num_nodes)}"
        # In a short run nothing may take most of it.
        longest_s = min(kind.longest_s, duration_s / 4)
        length_s = rng.uniform(min(kind.shortest_s, longest_s), longest_s)
        planned.append(Planned(at_s, name, target, length_s, rng.random()))
    return planned


def _spread(rng: random.Random, kinds: Mapping[str, Kind], count: int) -> Sequence[str]:
    """Kinds by their weights; each comes once at least where there is room for all."""
    once = list(kinds)[:count]
    weights = [kind.weight for kind in kinds.values()]
    names = once + rng.choices(list(kinds), weights, k=count - len(once))
    rng.shuffle(names)
    return names


def _arrivals(
    rng: random.Random, duration_s: float, most_per_s: float, tokens: tuple[int, int]
) -> list[Arrival]:
    steps = [*rates(duration_s, most_per_s), (duration_s, 0.0)]
    arrivals = []
    for (start_s, rate), (end_s, _) in pairwise(steps):
        at_s = start_s + rng.expovariate(rate)
        while at_s < end_s:
            arrivals.append(_arrival(rng, at_s, tokens))
            at_s += rng.expovariate(rate)
    return arrivals


def _arrival(rng: random.Random, at_s: float, tokens: tuple[int, int]) -> Arrival:
    num_tokens = rng.randint(*tokens)
    return Arrival(
        at_s,
        rng.choices(TENANTS, [tenant.share for tenant in TENANTS])[0],
        rng.getrandbits(31),
        num_tokens,
        rng.randint(1, num_tokens) if rng.random() < 0.3 else None,
        rng.uniform(0.5, 5.0) if rng.random() < 0.03 else None,
        rng.random() < 0.1,
    )


def _reference(rng: random.Random, tokens: tuple[int, int]) -> Arrival:
    return Arrival(0.0, TENANTS[0], rng.getrandbits(31), rng.randint(*tokens), None, None, False)


def _like(reference: Arrival, arrival: Arrival) -> Arrival:
    """The arrival, asking for what the reference asked for."""
    leaves_after = arrival.leaves_after
    if leaves_after is not None:
        leaves_after = min(leaves_after, reference.num_tokens)
    return replace(
        arrival,
        seed=reference.seed,
        num_tokens=reference.num_tokens,
        leaves_after=leaves_after,
    )


def _rescales(rng: random.Random, duration_s: float, num_nodes: int) -> list[Rescale]:
    """Down by one or more for a while, and up again."""
    rescales, at_s = [], QUIET_S
    while (at_s := at_s + rng.uniform(10, 40)) < duration_s - 15:
        rescales.append(Rescale(at_s, rng.randint(1, max(1, num_nodes - 1))))
        at_s += rng.uniform(5, 15)
        rescales.append(Rescale(at_s, num_nodes))
    return rescales
