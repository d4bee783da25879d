"""Fair sharing, by simulation in virtual time against the bound of the policy.

Tenants of different weights send tasks of different sizes to slots of different speeds, which lose
some of them; estimates are right, too high, too low or noise. After every event a referee, who
counts for itself, checks what start-time fair queueing with settlement promises for flows f, g that
are active together (phi: weight, E: largest charge, D+/D-: largest under- and over-estimate, K:
slots):

    v_f - v_g <= B_f = (E + K D+) / phi_f + sum over h of K D- / phi_h
    |S_f / phi_f - S_g / phi_g| <= B_f + B_g + work in flight     (S: work really done, since both
                                                                    became active)

A scenario is a seed and a few numbers, and is printed when it fails. The last tests remove one part
of the algorithm each and expect the referee to notice.
"""

from __future__ import annotations

import heapq
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler import moves
from scheduler.fair_queue import FairQueue
from scheduler.moves import Rules
from scheduler.policies import virtual_time
from scheduler.policies.virtual_time import SCALE
from scheduler.stores.base import Transaction
from scheduler.task import JournalChunk, Submission, Task
from scheduler.testing.tasks import MODEL, memory_transaction, problems

#: How a tenant predicts what its task will cost, from the true cost.
ESTIMATES: dict[str, Callable[[random.Random, int], int]] = {
    "exact": lambda _, cost: cost,
    "too high": lambda _, cost: cost * 4,
    "too low": lambda _, cost: max(1, cost // 4),
    "noise": lambda rng, cost: max(1, int(cost * rng.uniform(0.2, 5))),
}


class Unfair(AssertionError):
    """The referee saw a promise broken."""


@dataclass(frozen=True)
class Tenant:
    """What one tenant does."""

    name: str
    weight_permille: int = 1000
    estimate: str = "exact"
    #: New tokens of a task, least and most.
    tokens: tuple[int, int] = (5, 40)
    #: Moments at which it sends, and how many tasks each time.
    bursts: tuple[tuple[float, int], ...] = ((0.0, 40),)


@dataclass(frozen=True)
class Scenario:
    seed: int
    tenants: tuple[Tenant, ...]
    #: Tokens per second of each slot.
    speeds: tuple[float, ...] = (10.0, 10.0)
    #: How likely an attempt is to be lost half way.
    loss: float = 0.0


@dataclass
class Work:
    """One task as the simulation plans it."""

    tenant: str
    num_tokens: int
    cost: int
    estimate: int


def plan(scenario: Scenario) -> list[tuple[float, Work]]:
    """Who sends what when."""
    rng = random.Random(scenario.seed)
    sent: list[tuple[float, Work]] = []
    for tenant in scenario.tenants:
        for moment, count in tenant.bursts:
            for _ in range(count):
                num_tokens = rng.randint(*tenant.tokens)
                cost = 3 + 2 * num_tokens
                estimate = ESTIMATES[tenant.estimate](rng, cost)
                sent.append((moment, Work(tenant.name, num_tokens, cost, estimate)))
    return sorted(sent, key=lambda item: item[0])


@dataclass
class Referee:
    """Checks the bound after every event, from its own count of the work done."""

    scenario: Scenario
    works: Sequence[Work]
    done: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    #: For each pair that is active together: least and greatest difference of normalised work.
    ranges: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.phi = {t.name: t.weight_permille / 1000 for t in self.scenario.tenants}
        # A charge is at most the estimate, and what is left of it after a lost attempt is less.
        charge = max(work.estimate for work in self.works)
        under = max(max(0, work.cost - work.estimate) for work in self.works)
        # A lost attempt gives back all but what it journalled, which may be nothing.
        is_lossy = self.scenario.loss > 0
        over = charge if is_lossy else max(max(0, w.estimate - w.cost) for w in self.works)
        slots = len(self.scenario.speeds)
        refunds = sum(slots * over / phi for phi in self.phi.values())
        self.bound = {
            name: (charge + slots * under) / phi + refunds for name, phi in self.phi.items()
        }
        most = max(work.cost for work in self.works)
        self.in_flight = {name: slots * most / phi for name, phi in self.phi.items()}
        # Each charge is rounded down to a thousandth of a token.
        self.rounding = 4 * len(self.works) / SCALE

    def look(self, tx: Transaction) -> None:
        active = {f.tenant: f.virtual_time for f in tx.flows(MODEL) if f.is_active}
        for f in active:
            for g in active:
                spread = (active[f] - active[g]) / SCALE
                if spread > self.bound[f] + self.rounding:
                    raise Unfair(f"{f} is {spread:.0f} ahead of {g}, bound {self.bound[f]:.0f}")
        pairs = set(combinations(sorted(active), 2))
        self.ranges = {pair: seen for pair, seen in self.ranges.items() if pair in pairs}
        for f, g in pairs:
            gap = self.done[f] / self.phi[f] - self.done[g] / self.phi[g]
            low, high = self.ranges.get((f, g), (gap, gap))
            self.ranges[f, g] = low, high = min(low, gap), max(high, gap)
            allowed = sum(self.bound[t] + self.in_flight[t] for t in (f, g)) + self.rounding
            if high - low > allowed:
                raise Unfair(f"{f} and {g} drifted {high - low:.0f} apart, bound {allowed:.0f}")


class Simulation:
    """Slots that work off what the fair queue gives them, in virtual time."""

    def __init__(self, scenario: Scenario, tx: Transaction, queue: FairQueue) -> None:
        self.tx = tx
        self.rules = Rules(queue, lease_ttl_s=1e9, max_attempts=1000)
        self.rng = random.Random(scenario.seed + 1)
        self.loss = scenario.loss
        sent = plan(scenario)
        self.works = {f"t{number:05}": work for number, (_, work) in enumerate(sent)}
        self.referee = Referee(scenario, list(self.works.values()))
        self.free = dict(enumerate(scenario.speeds))
        self.speeds = scenario.speeds
        self.num_events = 0
        #: (moment, order, what happens then)
        self.agenda: list[tuple[float, int, Callable[[float], None]]] = []
        for task_id, (moment, work) in zip(self.works, sent, strict=True):
            self.at(moment, partial(self.submit, task_id, work))
        for tenant in scenario.tenants:
            tx.put_weight(tenant.name, tenant.weight_permille)

    def at(self, moment: float, happen: Callable[[float], None]) -> None:
        self.num_events += 1
        heapq.heappush(self.agenda, (moment, self.num_events, happen))

    def run(self) -> dict[str, int]:
        """Work done by tenant when everything is finished."""
        while self.agenda:
            now, _, happen = heapq.heappop(self.agenda)
            happen(now)
            if not self.agenda or self.agenda[0][0] > now:
                self.dispatch(now)
            self.referee.look(self.tx)
        return dict(self.referee.done)

    def submit(self, task_id: str, work: Work, now: float) -> None:
        submission = Submission(work.tenant, MODEL, {}, work.estimate, 3, 2)
        moves.submit(self.tx, self.rules, submission, task_id, now)

    def dispatch(self, now: float) -> None:
        depth = self.tx.depth().get(MODEL, 0)
        wanted = min(len(self.free), depth)
        got = moves.claim(self.tx, self.rules, MODEL, "r", "demo__r0", len(self.free), now)
        if len(got.value) != wanted:
            raise Unfair(f"{len(got.value)} of {wanted} free slots got work with {depth} queued")
        for grant in got.value:
            slot = min(self.free)
            del self.free[slot]
            self.start(grant.task, slot, now)

    def start(self, task: Task, slot: int, now: float) -> None:
        left = self.works[task.id].num_tokens - task.num_tokens
        half = left // 2
        moment = now + half / self.speeds[slot]
        if self.rng.random() < self.loss:
            self.at(moment, lambda then: self.lose(task, slot, half // 2, then))
            return
        self.at(moment, lambda then: self.progress(task, half, then))
        end = now + left / self.speeds[slot]
        self.at(end, lambda then: self.finish(task, slot, left - half, then))

    def progress(self, task: Task, num_tokens: int, now: float) -> None:
        if num_tokens:
            seq = moves.owned(self.tx, task.id).num_chunks
            new = JournalChunk(seq, (1,) * num_tokens, "")
            moves.append(self.tx, self.rules, task.id, task.fence, [new], now)
        prompt = 3 if num_tokens and num_tokens == moves.owned(self.tx, task.id).num_tokens else 0
        self.referee.done[task.tenant] += 2 * num_tokens + prompt

    def finish(self, task: Task, slot: int, num_tokens: int, now: float) -> None:
        self.progress(task, num_tokens, now)
        moves.succeed(self.tx, self.rules, task.id, task.fence, {}, now)
        self.free[slot] = self.speeds[slot]

    def lose(self, task: Task, slot: int, num_tokens: int, now: float) -> None:
        self.progress(task, num_tokens, now)
        moves.release(self.tx, self.rules, task.id, task.fence, "worker died", now)
        self.free[slot] = self.speeds[slot]


def simulate(scenario: Scenario, queue: FairQueue | None = None) -> dict[str, int]:
    with memory_transaction() as tx:
        done = Simulation(scenario, tx, queue or FairQueue(virtual_time.Policy())).run()
        if queue is None:
            assert problems(tx) == []
            assert {f.tenant: f.charged_cost for f in tx.flows(MODEL)} == done
        return done


# ------------------------------------------------------------------------------------ scenarios

BURSTS = st.lists(
    st.tuples(st.floats(0, 60).map(lambda moment: round(moment, 1)), st.integers(1, 12)),
    min_size=1,
    max_size=4,
).map(tuple)


@st.composite
def tenants(draw: st.DrawFn) -> tuple[Tenant, ...]:
    return tuple(
        Tenant(
            name,
            weight_permille=draw(st.sampled_from([250, 500, 1000, 3000])),
            estimate=draw(st.sampled_from(sorted(ESTIMATES))),
            tokens=draw(st.sampled_from([(1, 4), (5, 40), (30, 120)])),
            bursts=draw(BURSTS),
        )
        for name in "abcd"[: draw(st.integers(2, 4))]
    )


SCENARIOS = st.builds(
    Scenario,
    seed=st.integers(0, 2**32),
    tenants=tenants(),
    speeds=st.lists(st.sampled_from([1.0, 7.0, 20.0]), min_size=1, max_size=4).map(tuple),
    loss=st.sampled_from([0.0, 0.0, 0.2]),
)


@given(SCENARIOS)
@settings(max_examples=60, deadline=None)
def test_active_tenants_stay_within_the_bound(scenario: Scenario) -> None:
    simulate(scenario)


def test_a_short_request_is_served_promptly_beside_a_flood() -> None:
    with memory_transaction() as tx:
        rules = Rules(FairQueue(virtual_time.Policy()), 10.0, 5)
        for number in range(200):
            flood = Submission("flood", MODEL, {}, 100, 20, 2)
            moves.submit(tx, rules, flood, f"f{number:03}", 0.0)
        moves.claim(tx, rules, MODEL, "r", "demo__r0", 4, 0.0)
        moves.submit(tx, rules, Submission("chat", MODEL, {}, 10, 2, 2), "chat", 1.0)

        claimed = moves.claim(tx, rules, MODEL, "r", "demo__r0", 2, 1.0).value

        assert "chat" in [grant.task.id for grant in claimed]


def test_weights_of_one_and_three_share_one_to_three_within_a_task() -> None:
    cost = 3 + 2 * 20
    with memory_transaction() as tx:
        rules = Rules(FairQueue(virtual_time.Policy()), 10.0, 5)
        tx.put_weight("gold", 3000)
        for number in range(200):
            for tenant in ("gold", "plain"):
                sent = Submission(tenant, MODEL, {}, cost, 3, 2)
                moves.submit(tx, rules, sent, f"{tenant}{number:03}", 0.0)
        for _ in range(120):
            moves.claim(tx, rules, MODEL, "r", "demo__r0", 1, 0.0)
            served = {flow.tenant: flow.charged_cost for flow in tx.flows(MODEL)}

            assert abs(served["gold"] / 3 - served["plain"]) <= cost


# -------------------------------------------------------------- what the referee must not let pass


class WithoutLift(virtual_time.Policy):
    def join(self, virtual_time: int, least_active: int | None, floor: int) -> int:
        return virtual_time


class WithoutSettlement(FairQueue):
    def settle(self, tx: Transaction, task: Task, used: int) -> Task:
        return replace(task, settled_cost=task.charged_cost, charged_virtual_time=0)


class WithoutChargeAtDispatch(FairQueue):
    def charge(self, tx: Transaction, task: Task) -> Task:
        return replace(task, charged_virtual_time=0)


class FirstComeFirstServed(FairQueue):
    def head(self, tx: Transaction, model: str) -> Task | None:
        heads = [tx.head(model, f.tenant) for f in tx.flows(model) if f.is_active]
        return min((h for h in heads if h is not None), key=lambda h: h.id, default=None)


RETURNING = Scenario(
    seed=1,
    tenants=(Tenant("busy", bursts=((0.0, 120),)), Tenant("returning", bursts=((60.0, 40),))),
)
OVERESTIMATING = Scenario(
    seed=2,
    tenants=(
        Tenant("honest", bursts=((0.0, 150),)),
        Tenant("cautious", estimate="too high", bursts=((0.0, 150),)),
    ),
)
FLOODING = Scenario(
    seed=3,
    tenants=(Tenant("flood", bursts=((0.0, 60),)), Tenant("other", bursts=((0.0, 60),))),
    speeds=(10.0,) * 8,
)
MUTANTS = {
    "lift": (RETURNING, FairQueue(WithoutLift())),
    "settlement": (OVERESTIMATING, WithoutSettlement(virtual_time.Policy())),
    "charge at dispatch": (FLOODING, WithoutChargeAtDispatch(virtual_time.Policy())),
    "fair order": (FLOODING, FirstComeFirstServed(virtual_time.Policy())),
}


@pytest.mark.parametrize("removed", MUTANTS)
def test_the_referee_notices_what_was_removed(removed: str) -> None:
    scenario, mutant = MUTANTS[removed]

    with pytest.raises(Unfair):
        simulate(scenario, mutant)


@pytest.mark.parametrize("scenario", [RETURNING, OVERESTIMATING, FLOODING])
def test_the_referee_lets_the_real_queue_pass(scenario: Scenario) -> None:
    simulate(scenario)
