"""Beside a bulk of any size, everybody else is served as if it were not there, but for a bound.

A bulk of 100,000 inputs of class ``batch`` waits for a model with a few slots, all of which it has.
Interactive tasks come in between. While one of them waits, the bulk is granted no more than start-
time fair queueing between classes allows: with S the cost that each class is granted meanwhile, and
L that of the largest task,

    S_batch <= L + (L + S_interactive) * 1/16,

for 1/16 is what a class of weight 1 gets beside one of weight 16. All that is granted before it,
and the longest running task, say how long it waits. How many inputs wait does not matter.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler import moves
from scheduler.bulk import MAX_INPUTS, Bulk
from scheduler.bulk_book import BATCH
from scheduler.fair_queue import FairQueue
from scheduler.flow import CLASS_WEIGHTS
from scheduler.moves import Preemption, Rules, bulks
from scheduler.policies import virtual_time
from scheduler.records import changed
from scheduler.stores.base import Transaction
from scheduler.task import Submission, TaskState
from scheduler.testing.tasks import MODEL, memory_transaction

SPEED = 10.0
#: Cost of the largest task of anybody.
LARGEST = 200
LONGEST_S = LARGEST / SPEED
SHARE = CLASS_WEIGHTS["batch"] / CLASS_WEIGHTS["interactive"]
#: The store goes from one example to the next, and its tasks need names of their own.
NUMBERS = count()


def an_input(rng: random.Random, bulk: Bulk, index: int) -> Submission:
    cost = rng.randint(20, LARGEST)
    blank = Submission(bulk.tenant, MODEL, {}, cost, 0, 0, priority_class=bulk.priority_class)
    return changed(blank, bulk_id=bulk.id, bulk_index=index)


@pytest.fixture(scope="module")
def beside_a_bulk() -> Iterator[Transaction]:
    """A store in which the largest bulk there may be waits."""
    rng, rules = random.Random(1), Rules(FairQueue(virtual_time.Policy()), 1e9, 5)
    bulk = Bulk("bulk", "miner", MODEL, "batch", 0.0)
    with memory_transaction() as tx:
        bulks.begin(tx, bulk, 0.0)
        for start in range(0, MAX_INPUTS, BATCH):
            some = [an_input(rng, bulk, index) for index in range(start, start + BATCH)]
            ids = [f"b{index:06}" for index in range(start, start + BATCH)]
            bulks.extend(tx, rules, bulk.id, start, some, ids, 0.0)
        yield tx


@dataclass
class Beside:
    """A model at work on the bulk, in virtual time, and those who come."""

    tx: Transaction
    rng: random.Random
    num_slots: int
    rules: Rules
    now: float = 0.0
    ends: list[tuple[float, str, int]] = field(default_factory=list)
    #: Cost that was granted so far, by class.
    granted: Counter[str] = field(default_factory=Counter)
    #: Of who waits: when it came, and what had been granted then.
    came: dict[str, tuple[float, Counter[str]]] = field(default_factory=dict)
    #: Seconds that each waited, and what was granted meanwhile.
    waits: list[tuple[float, Counter[str]]] = field(default_factory=list)

    def run(self, arrivals: list[tuple[float, str]]) -> None:
        self.claim()
        for pause_s, tenant in arrivals:
            self.until(self.now + pause_s)
            self.come(f"x{next(NUMBERS)}", tenant)
        self.until(self.now + LONGEST_S * (len(arrivals) + 2))
        self.leave()

    def come(self, name: str, tenant: str) -> None:
        cost = self.rng.randint(20, LARGEST)
        sent = Submission(tenant, MODEL, {}, cost, 0, 0, priority_class="interactive")
        self.came[name] = self.now, Counter(self.granted)
        moves.submit(self.tx, self.rules, sent, name, self.now)
        self.claim()

    def until(self, moment: float) -> None:
        while self.ends and self.ends[0][0] <= moment:
            self.now, name, fence = heapq.heappop(self.ends)
            moves.succeed(self.tx, self.rules, name, fence, {}, self.now)
            self.claim()
        self.now = moment

    def claim(self) -> None:
        free = self.num_slots - len(self.ends)
        granted = moves.claim(self.tx, self.rules, MODEL, "r", "demo__r0", free, self.now).value
        for grant in granted:
            task = grant.task
            end = self.now + task.estimated_cost / SPEED
            heapq.heappush(self.ends, (end, task.id, task.fence))
            if task.id in self.came:
                at, before = self.came[task.id]
                self.waits.append((self.now - at, self.granted - before))
            self.granted[task.priority_class] += task.estimated_cost

    def leave(self) -> None:
        for _, name, fence in self.ends:
            moves.succeed(self.tx, self.rules, name, fence, {}, self.now)


def check(beside: Beside) -> None:
    for waited_s, granted in beside.waits:
        most = LARGEST + (LARGEST + granted["interactive"]) * SHARE
        assert granted["batch"] <= most
        assert waited_s <= LONGEST_S + granted.total() / (beside.num_slots * SPEED) + 1e-6


ARRIVALS = st.lists(
    st.tuples(
        st.floats(0, 3 * LONGEST_S),
        st.sampled_from(["ann", "bob"]),
    ),
    min_size=1,
    max_size=12,
)


@given(seed=st.integers(0, 1000), num_slots=st.integers(1, 8), arrivals=ARRIVALS)
@settings(max_examples=30, deadline=None)
def test_who_comes_beside_a_bulk_waits_for_a_slot_and_not_for_the_bulk(
    beside_a_bulk: Transaction, seed: int, num_slots: int, arrivals: list[tuple[float, str]]
) -> None:
    rules = Rules(FairQueue(virtual_time.Policy()), 1e9, 5, preemption=None)
    beside = Beside(beside_a_bulk, random.Random(seed), num_slots, rules)

    beside.run(arrivals)

    assert len(beside.waits) == len(arrivals)
    check(beside)
    # There was a bulk to wait for, all the time.
    assert beside_a_bulk.waiting(MODEL, "batch").num_tasks > MAX_INPUTS // 2


def test_a_class_that_gets_more_than_its_share_is_noticed(beside_a_bulk: Transaction) -> None:
    rules = Rules(FairQueue(virtual_time.Policy()), 1e9, 5, preemption=None)
    beside = Beside(beside_a_bulk, random.Random(1), 1, rules)
    weight = beside_a_bulk.class_weight("batch")
    beside_a_bulk.put_class("batch", 100 * weight)
    beside.run([(1.0, "ann")] * 12)
    beside_a_bulk.put_class("batch", weight)

    with pytest.raises(AssertionError):
        check(beside)


def test_running_inputs_make_room_for_who_has_waited_long_enough() -> None:
    rules = Rules(FairQueue(virtual_time.Policy()), 1e9, 5, preemption=Preemption(2.0, 5.0))
    bulk = Bulk("bulk", "miner", MODEL, "batch", 0.0)
    with memory_transaction() as tx:
        bulks.begin(tx, bulk, 0.0)
        inputs = [an_input(random.Random(1), bulk, index) for index in range(50)]
        bulks.extend(tx, rules, bulk.id, 0, inputs, [f"b{n:02}" for n in range(50)], 0.0)
        moves.claim(tx, rules, MODEL, "r", "demo__r0", 4, 0.0)
        sent = Submission("chat", MODEL, {}, 20, 0, 0, priority_class="interactive")
        moves.submit(tx, rules, sent, "chat", 10.0)

        early = moves.preempt(tx, rules, MODEL, 11.9).value
        (parked,) = moves.preempt(tx, rules, MODEL, 12.0).value
        (granted,) = moves.claim(tx, rules, MODEL, "r", "demo__r0", 1, 12.0).value

        assert early == []
        assert (parked.bulk_id, parked.state) == ("bulk", TaskState.QUEUED)
        assert granted.task.id == "chat"
