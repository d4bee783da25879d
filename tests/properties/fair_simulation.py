"""Slots that work off what the fair queue gives them, in virtual time, before a referee.

Tenants of different weights and classes send tasks of different sizes to slots of different speeds,
which lose some of them; estimates are right, too high, too low or noise. The queue may be restarted
at any moment: what it goes on with is what the store holds. A scenario is a seed and a few values,
and is printed when it fails.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from scheduler import moves
from scheduler.errors import QuotaExceeded
from scheduler.fair_queue import FairQueue
from scheduler.flow import DEFAULT_CLASS
from scheduler.moves import Rules
from scheduler.operations import TenantChange
from scheduler.policies.base import Policy
from scheduler.task import JournalChunk, Submission, Task
from scheduler.testing.simulation.referee import Referee
from scheduler.testing.tasks import MODEL, MemoryDisk, problems

#: How a tenant predicts what its task will cost, from the true cost.
ESTIMATES: dict[str, Callable[[random.Random, int], int]] = {
    "exact": lambda _, cost: cost,
    "too high": lambda _, cost: cost * 4,
    "too low": lambda _, cost: max(1, cost // 4),
    "noise": lambda rng, cost: max(1, int(cost * rng.uniform(0.2, 5))),
}
#: A token costs so much that a policy that counts in quanta has to count them.
PROMPT_COST, TOKEN_COST = 150, 100


class Unfair(AssertionError):
    """A promise was broken."""


@dataclass(frozen=True)
class Burst:
    moment: float
    count: int
    priority_class: str = DEFAULT_CLASS


@dataclass(frozen=True)
class Sender:
    """What one tenant does."""

    name: str
    weight_permille: int = 1000
    estimate: str = "exact"
    #: New tokens of a task, least and most.
    tokens: tuple[int, int] = (5, 40)
    bursts: tuple[Burst, ...] = (Burst(0.0, 40),)
    max_in_flight: int | None = None
    max_queued: int | None = None
    #: Changes of its weight and its cap: (moment, weight, most in flight).
    changes: tuple[tuple[float, int, int | None], ...] = ()


@dataclass(frozen=True)
class Scenario:
    seed: int
    senders: tuple[Sender, ...]
    #: Tokens per second of each slot.
    speeds: tuple[float, ...] = (10.0, 10.0)
    #: How likely an attempt is to be lost half way.
    loss: float = 0.0
    #: How likely the queue is started again after an event.
    restarts: float = 0.0
    #: Slots of which the last is kept for flows with fewer in flight; None: none is.
    most_leased: int | None = None


class Simulation:
    """One scenario under one policy."""

    def __init__(
        self, scenario: Scenario, policy: Callable[[], Policy], queue: type[FairQueue] = FairQueue
    ) -> None:
        self.scenario, self.policy, self.queue = scenario, policy, queue
        self.disk = MemoryDisk()
        self.rules = self._new_rules()
        self.rng = random.Random(scenario.seed)
        self.referee = Referee(policy(), has_overtaking=scenario.most_leased is not None)
        self.free = dict(enumerate(scenario.speeds))
        self.num_tokens: dict[str, int] = {}
        self.num_events = self.num_refused = 0
        #: (moment, order, what happens then)
        self.agenda: list[tuple[float, int, Callable[[float], None]]] = []
        for sender in scenario.senders:
            self.change(sender, sender.weight_permille, sender.max_in_flight, 0.0)
            for moment, weight, most in sender.changes:
                self.at(moment, partial(self.change, sender, weight, most))
            for burst in sender.bursts:
                self.at(burst.moment, partial(self.send, sender, burst))

    @property
    def tx(self) -> Any:
        return self.disk.transaction

    def _new_rules(self) -> Rules:
        return Rules(self.queue(self.policy()), lease_ttl_s=1e9, max_attempts=1000)

    def at(self, moment: float, happen: Callable[[float], None]) -> None:
        self.num_events += 1
        heapq.heappush(self.agenda, (moment, self.num_events, happen))

    def run(self) -> Referee:
        """Until everything is finished.

        Raises:
            Unfair: says what the referee saw.
        """
        with self.disk:
            while self.agenda:
                now, _, happen = heapq.heappop(self.agenda)
                happen(now)
                if not self.agenda or self.agenda[0][0] > now:
                    self.dispatch(now)
                if self.rng.random() < self.scenario.restarts:
                    self.disk.restart()
                    self.rules = self._new_rules()
                self.look()
            self.check_the_end()
        return self.referee

    # -- what happens

    def change(self, sender: Sender, weight: int, most: int | None, now: float) -> None:
        change = TenantChange(
            weight_permille=weight, max_in_flight=most, max_queued=sender.max_queued
        )
        self.tx.put_tenant(change.applied(self.tx.tenant(sender.name)))
        self.rules.queue.regulate(self.tx, sender.name, has_new_limit=True)
        self.referee.weight_set(sender.name, weight)

    def send(self, sender: Sender, burst: Burst, now: float) -> None:
        for _ in range(burst.count):
            count = self.rng.randint(*sender.tokens)
            estimate = ESTIMATES[sender.estimate](self.rng, PROMPT_COST + TOKEN_COST * count)
            submission = Submission(
                sender.name,
                MODEL,
                {},
                estimate,
                PROMPT_COST,
                TOKEN_COST,
                priority_class=burst.priority_class,
            )
            task_id = f"t{len(self.num_tokens):05}"
            try:
                moves.submit(self.tx, self.rules, submission, task_id, now)
            except QuotaExceeded:
                self.num_refused += 1
            else:
                self.num_tokens[task_id] = count
                self.referee.task_accepted(estimate)

    def dispatch(self, now: float) -> None:
        while self.free:
            wanted = self.num_claimable()
            most = self.scenario.most_leased if len(self.free) == 1 else None
            got = moves.claim(self.tx, self.rules, MODEL, "r", "demo__r0", 1, now, most_leased=most)
            if not got.value:
                may_wait = most is not None and self.num_flows() == 1
                if wanted and not may_wait:
                    raise Unfair(f"{len(self.free)} slots are free, and {wanted} tasks wait")
                return
            task = got.value[0].task
            self.referee.task_moved(
                {**_row(task), "state": "queued", "charged_cost": 0}, _row(task)
            )
            slot = min(self.free)
            del self.free[slot]
            self.start(task, slot, now)

    def start(self, task: Task, slot: int, now: float) -> None:
        left, speed = self.num_tokens[task.id] - task.num_tokens, self.scenario.speeds[slot]
        half = left // 2
        moment = now + half / speed
        if self.rng.random() < self.scenario.loss:
            self.at(moment, lambda then: self.lose(task, slot, half // 2, then))
            return
        self.at(moment, lambda then: self.progress(task, half, then))
        self.at(now + left / speed, lambda then: self.finish(task, slot, left - half, then))

    def progress(self, task: Task, num_tokens: int, now: float) -> None:
        if num_tokens:
            before = moves.owned(self.tx, task.id)
            new = JournalChunk(before.num_chunks, (1,) * num_tokens, "")
            moves.append(self.tx, self.rules, task.id, task.fence, [new], now)
            self.moved(before)

    def finish(self, task: Task, slot: int, num_tokens: int, now: float) -> None:
        self.progress(task, num_tokens, now)
        before = moves.owned(self.tx, task.id)
        moves.succeed(self.tx, self.rules, task.id, task.fence, {}, now)
        self.moved(before)
        self.free[slot] = self.scenario.speeds[slot]

    def lose(self, task: Task, slot: int, num_tokens: int, now: float) -> None:
        self.progress(task, num_tokens, now)
        before = moves.owned(self.tx, task.id)
        lost = moves.release(self.tx, self.rules, task.id, task.fence, "worker died", now).value
        self.moved(before)
        if lost.not_before is not None:
            self.at(lost.not_before, self.sweep)
        self.free[slot] = self.scenario.speeds[slot]

    def sweep(self, now: float) -> None:
        moves.end_pauses(self.tx, self.rules, now, 1000)

    def moved(self, before: Task) -> None:
        self.referee.task_moved(_row(before), _row(moves.owned(self.tx, before.id)))

    # -- what must hold

    def look(self) -> None:
        for flow in self.tx.flows(MODEL):
            self.referee.flow_moved(
                flow.priority_class,
                flow.tenant,
                flow.virtual_time,
                flow.num_queued,
                flow.num_leased,
                flow.is_held,
            )
        for band in self.tx.bands(MODEL):
            self.referee.band_moved(band.priority_class, band.virtual_time, band.num_active)
        if problems := self.referee.look():
            raise Unfair(problems[0])
        for name in {flow.tenant for flow in self.tx.flows(MODEL)}:
            self.check_cap(name)

    def check_cap(self, name: str) -> None:
        """No more in flight than allowed, but for what was when the cap was lowered."""
        most = self.tx.tenant(name).max_in_flight
        flows = self.tx.flows_of(name)
        num_leased = sum(flow.num_leased for flow in flows)
        if most is not None and num_leased > max(most, self._had(name)):
            raise Unfair(f"{name} has {num_leased} tasks in flight and may have {most}")

    def _had(self, name: str) -> int:
        sender = next(each for each in self.scenario.senders if each.name == name)
        return len(self.scenario.speeds) if sender.changes else 0

    def num_claimable(self) -> int:
        total = 0
        for name in {flow.tenant for flow in self.tx.flows(MODEL)}:
            flows, most = self.tx.flows_of(name), self.tx.tenant(name).max_in_flight
            queued = sum(flow.num_queued for flow in flows)
            room = queued if most is None else most - sum(flow.num_leased for flow in flows)
            total += max(0, min(queued, room))
        return total

    def num_flows(self) -> int:
        return sum(flow.is_active for flow in self.tx.flows(MODEL))

    def check_the_end(self) -> None:
        assert problems(self.tx) == []
        charged = {(f.priority_class, f.tenant): f.charged_cost for f in self.tx.flows(MODEL)}
        done = {name: cost for name, cost in self.referee.done.items() if len(name) == 2}
        assert charged == done, f"charged {charged}, done {done}"


def _row(task: Task) -> dict[str, Any]:
    return {
        "id": task.id,
        "state": task.state.value,
        "tenant": task.tenant,
        "priority_class": task.priority_class,
        "charged_cost": task.charged_cost,
        "num_tokens": task.num_tokens,
        "prompt_cost": task.prompt_cost,
        "cost_per_token": task.cost_per_token,
    }
