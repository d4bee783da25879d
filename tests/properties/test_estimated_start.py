"""An estimated start is near the true one, when speed is constant and nothing new comes in.

Tenants of different weights and classes have tasks of different sizes waiting for slots of one
speed. Whenever a task has ended, every waiting one is explained; then the rest is worked off, and
the moments at which tasks really started are compared with what was said. The speed is what the
meter has measured of the work itself.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler import moves
from scheduler.cluster_view import ReplicaView
from scheduler.explanation import Explanation, Facts, explain_waiting
from scheduler.fair_queue import FairQueue
from scheduler.flow import Ahead, Outlook
from scheduler.moves import Rules
from scheduler.policies import deficit_round_robin, fcfs, virtual_time
from scheduler.policies.base import Policy
from scheduler.records import changed
from scheduler.service_rate import RateMeter
from scheduler.stores.base import Transaction
from scheduler.task import JournalChunk, Submission, Task, TaskState
from scheduler.testing.tasks import MODEL, memory_transaction

#: The true wait is at most so many times what was estimated, and the other way round, give or take
#: the longest task in each slot and one of each flow: a task is not shared, and goes whole or not.
FACTOR = 1.5
COST_PER_TOKEN = 2
#: Weighted tokens a second that each slot is served.
SPEED = 20.0


@dataclass
class Simulation:
    """A model with some slots, worked at in virtual time."""

    tx: Transaction
    policy: Policy
    num_slots: int
    now: float = 0.0
    #: Running tasks by their ends.
    ends: list[tuple[float, str, int]] = field(default_factory=list)
    started_at: dict[str, float] = field(default_factory=dict)
    #: What was said: task, when, and its estimated start.
    said: list[tuple[str, float, float]] = field(default_factory=list)
    meter: RateMeter = field(default_factory=RateMeter)

    def __post_init__(self) -> None:
        self.rules = Rules(FairQueue(self.policy), 1e9, 5)

    def submit(self, name: str, tenant: str, priority_class: str, num_tokens: int) -> None:
        cost = COST_PER_TOKEN * num_tokens
        sent = Submission(tenant, MODEL, {}, cost, 0, COST_PER_TOKEN)
        sent = changed(sent, priority_class=priority_class)
        # One after the other, for policies that go by that.
        self.now += 1e-5
        moves.submit(self.tx, self.rules, sent, name, self.now)

    def run(self) -> None:
        self.meter.is_due(self.now)
        self.claim()
        while self.ends:
            self.now, name, fence = heapq.heappop(self.ends)
            self.write_down()
            self.tick()
            moves.succeed(self.tx, self.rules, name, fence, {}, self.now)
            self.claim()
            self.explain_all()

    def claim(self) -> None:
        free = self.num_slots - len(self.ends)
        claimed = moves.claim(self.tx, self.rules, MODEL, "r", "demo__r0", free, self.now).value
        for grant in claimed:
            task = grant.task
            self.started_at[task.id] = self.now
            end = self.now + task.estimated_cost / SPEED
            heapq.heappush(self.ends, (end, task.id, task.fence))

    def write_down(self) -> None:
        """Bring the journals of what runs up to now."""
        for task in self.tx.leases_of(MODEL):
            done = round((self.now - self.started_at[task.id]) * SPEED / COST_PER_TOKEN)
            missing = min(done, task.estimated_cost // COST_PER_TOKEN) - task.num_tokens
            if missing > 0:
                chunk = JournalChunk(task.num_chunks, (1,) * missing, "")
                moves.append(self.tx, self.rules, task.id, task.fence, [chunk], self.now)
                self.meter.served(COST_PER_TOKEN * missing)

    def tick(self) -> None:
        if self.meter.is_due(self.now):
            # The one that ends now was busy until now.
            self.meter.end_period(self.now, len(self.ends) + 1, self.num_slots)

    def explain_all(self) -> None:
        for task in self.tx.tasks(state=TaskState.QUEUED, limit=1000):
            told = self.explain(task)
            if told.estimated_start_at is not None:
                self.said.append((task.id, self.now, told.estimated_start_at))

    def outlook(self, task: Task) -> Outlook:
        return self.rules.queue.outlook(self.tx, task)

    def explain(self, task: Task) -> Explanation:
        running = self.tx.leases_of(MODEL)
        facts = Facts(
            task,
            self.now,
            self.outlook(task),
            self.tx.tenant(task.tenant),
            len([each for each in running if each.tenant == task.tenant]),
            running,
            [ReplicaView("demo__r0", MODEL, "ready", self.num_slots, len(running))],
            1,
            self.meter.rate(self.now),
            self.tx.class_weights(),
        )
        return explain_waiting(facts, [])


@dataclass(frozen=True)
class Scenario:
    """Printed when it fails."""

    seed: int
    num_slots: int
    num_tasks: int
    tenants: tuple[str, ...]
    classes: tuple[str, ...]
    longest: int


SCENARIOS = st.builds(
    Scenario,
    seed=st.integers(0, 10**6),
    num_slots=st.integers(1, 6),
    num_tasks=st.integers(2, 60),
    tenants=st.sampled_from([("ann",), ("ann", "bob"), ("ann", "bob", "cy", "di")]),
    classes=st.sampled_from([("standard",), ("standard", "batch"), ("interactive", "batch")]),
    longest=st.sampled_from([20, 200]),
)


def simulate(scenario: Scenario, policy: Policy, kind: type[Simulation] = Simulation) -> Simulation:
    rng = random.Random(scenario.seed)
    with memory_transaction() as tx:
        simulation = kind(tx, policy, scenario.num_slots)
        for tenant in scenario.tenants:
            weight = rng.choice([1000, 1000, 3000])
            tx.put_tenant(changed(tx.tenant(tenant), weight_permille=weight))
        for number in range(scenario.num_tasks):
            tenant, priority_class = rng.choice(scenario.tenants), rng.choice(scenario.classes)
            num_tokens = rng.randint(10, scenario.longest)
            simulation.submit(f"t{number:03}", tenant, priority_class, num_tokens)
        simulation.run()
    return simulation


def check(simulation: Simulation, scenario: Scenario) -> None:
    num_flows = len(scenario.tenants) * len(scenario.classes)
    longest_s = COST_PER_TOKEN * scenario.longest / SPEED
    slack_s = longest_s * (1 + num_flows / scenario.num_slots)
    for name, at, estimated in simulation.said:
        told_s, true_s = estimated - at, simulation.started_at[name] - at
        assert told_s <= FACTOR * true_s + slack_s, (name, at, told_s, true_s)
        assert true_s <= FACTOR * told_s + slack_s, (name, at, told_s, true_s)


@pytest.mark.parametrize("module", [virtual_time, fcfs, deficit_round_robin])
@given(scenario=SCENARIOS)
@settings(max_examples=40, deadline=None)
def test_a_task_starts_about_when_it_was_said_to(module: object, scenario: Scenario) -> None:
    simulation = simulate(scenario, module.Policy())

    assert len(simulation.started_at) == scenario.num_tasks
    check(simulation, scenario)


def test_most_of_what_waits_is_given_an_estimate() -> None:
    scenario = Scenario(1, 3, 40, ("ann", "bob"), ("standard", "batch"), 100)
    simulation = simulate(scenario, virtual_time.Policy())

    # Each of the 40 ends once, and all that wait then are explained.
    assert len(simulation.said) > 0.8 * sum(range(1, 40 - 3))


class BlindToOthers(Simulation):
    def outlook(self, task: Task) -> Outlook:
        return replace(super().outlook(task), others=Ahead(), classes={})


class BlindToClasses(Simulation):
    def outlook(self, task: Task) -> Outlook:
        return replace(super().outlook(task), classes={})


class BlindToWeights(Simulation):
    def outlook(self, task: Task) -> Outlook:
        """As if all that waits went first."""
        waiting = self.tx.waiting(MODEL, task.priority_class)
        return replace(super().outlook(task), others=waiting)


@pytest.mark.parametrize("blind", [BlindToOthers, BlindToClasses, BlindToWeights])
def test_an_estimate_that_leaves_something_out_is_noticed(blind: type[Simulation]) -> None:
    tenants, classes = ("ann", "bob", "cy", "di"), ("standard", "batch")
    scenario = Scenario(3, 4, 120, tenants, classes, 20)

    with pytest.raises(AssertionError):
        check(simulate(scenario, virtual_time.Policy(), blind), scenario)
