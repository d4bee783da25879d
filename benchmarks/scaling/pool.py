"""A pool of replicas in virtual time: what starts, serves, drains and dies, and what it costs.

A replica has slots, each of which works through so much cost a second; requests wait in one queue.
Starts take a log-normal time, replicas die at random, and some are slower than others. One that has
to go takes no more work; after the grace it is killed, and what it was working on is cut: it goes
back to the head of the queue with what it has done, as a journal would let it, and is counted.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from benchmarks.scaling.traces import Request, Trace, requests

SLOTS: Final = 8
#: Cost that one slot of a replica of speed 1 works through in a second.
SLOT_SPEED: Final = 30.0
#: Device kinds and their speeds, which take turns.
KINDS: Final = (("fast", 1.0), ("slow", 0.6))
#: Mean seconds between deaths of one replica.
MTBF_S: Final = 5400.0
#: Spread of the log-normal distribution of starts.
START_SPREAD: Final = 0.3


@dataclass(eq=False, slots=True)
class Work:
    request: Request
    done: float = 0.0
    begun_at: float = 0.0
    first_at: float | None = None


@dataclass(eq=False, slots=True)
class Replica:
    name: str
    kind: str
    speed: float
    ordered_at: float
    ready_at: float
    is_ready: bool = False
    #: When it was told to go; None: it stays.
    leaving_at: float | None = None
    running: set[Work] = field(default_factory=set)

    @property
    def slot_speed(self) -> float:
        """Cost that one slot works through in a second."""
        return SLOT_SPEED * self.speed

    def done(self, work: Work, now: float) -> float:
        """Cost that is done of what it works on."""
        return work.done + (now - work.begun_at) * self.slot_speed


@dataclass(slots=True)
class Tally:
    """What came of a run."""

    waits_s: list[float] = field(default_factory=list)
    num_events: int = 0
    num_ups: int = 0
    num_cut: int = 0
    replica_s: float = 0.0


class Pool:
    """The simulated cluster; a scaler looks at it and calls :meth:`want`."""

    def __init__(self, trace: Trace, seed: int, start_s: float, grace_s: float | None) -> None:
        """``grace_s``: seconds until a replica that goes is killed; None: when it has finished."""
        self.now = 0.0
        self.queue: deque[Work] = deque()
        self.replicas: list[Replica] = []
        self.num_wanted = 0
        self.tally = Tally()
        #: Cost of everything done so far, and of finished work, used and estimated.
        self.finished_cost = self.finished_estimate = 0.0
        self.starts: list[tuple[str, float]] = []
        self._grace_s, self._start_s = grace_s, start_s
        self._draw = random.Random(f"pool {seed}")
        self._order = itertools.count()
        self._names = itertools.count()
        self._events: list[tuple[float, int, str, object]] = []
        self._until = trace.seconds
        for request in requests(trace, seed):
            self._at(request.at, "arrive", request)

    # -- what a scaler sees

    @property
    def ready(self) -> list[Replica]:
        return [r for r in self.replicas if r.is_ready and r.leaving_at is None]

    @property
    def starting(self) -> list[Replica]:
        return [r for r in self.replicas if not r.is_ready and r.leaving_at is None]

    @property
    def running(self) -> list[tuple[Replica, Work]]:
        return [(r, work) for r in self.replicas for work in r.running]

    def served_cost(self) -> float:
        """Cost of everything that was ever done."""
        waiting = sum(work.done for work in self.queue)
        running = sum(r.done(work, self.now) for r, work in self.running)
        return self.finished_cost + waiting + running

    # -- what a scaler does

    def want(self, num: int) -> None:
        """Have this many replicas; a change is a scale event."""
        if num == self.num_wanted:
            return
        if self.num_wanted or self.now:
            self.tally.num_events += 1
            self.tally.num_ups += num > self.num_wanted
        self.num_wanted = num
        self._reconcile()

    def _reconcile(self) -> None:
        staying = [r for r in self.replicas if r.leaving_at is None]
        for _ in range(self.num_wanted - len(staying)):
            self._order_replica()
        # First those that are not ready, then those with the least to do.
        staying.sort(key=lambda r: (r.is_ready, len(r.running), -r.ordered_at))
        for replica in staying[: max(0, len(staying) - self.num_wanted)]:
            self._dismiss(replica)

    def _order_replica(self, ready_now: bool = False) -> None:
        number = next(self._names)
        kind, speed = KINDS[number % len(KINDS)]
        spread = self._draw.lognormvariate(-(START_SPREAD**2) / 2, START_SPREAD)
        takes_s = 0.0 if ready_now else self._start_s * spread
        replica = Replica(f"r{number}", kind, speed, self.now, self.now + takes_s)
        self.replicas.append(replica)
        self._at(replica.ready_at, "ready", replica)
        self._at(replica.ready_at + self._draw.expovariate(1 / MTBF_S), "die", replica)

    def _dismiss(self, replica: Replica) -> None:
        replica.leaving_at = self.now
        if not replica.running:
            self.replicas.remove(replica)
        elif self._grace_s is not None:
            self._at(self.now + self._grace_s, "kill", replica)

    # -- time

    def begin(self, num: int) -> None:
        """Begin with replicas that are ready."""
        self.num_wanted = num
        for _ in range(num):
            self._order_replica(ready_now=True)

    def run_until(self, moment: float) -> None:
        while self._events and self._events[0][0] <= moment:
            at, _, kind, what = heapq.heappop(self._events)
            self._pass_time(at)
            getattr(self, f"_{kind}")(what)
        self._pass_time(moment)

    def finish(self) -> None:
        """Let what waits at the end of the trace begin, so that every wait is counted."""
        limit = self._until + 3600
        while (self.queue or self.running) and self.now < limit:
            self.run_until(self.now + 10)
        self.tally.waits_s += [self.now - work.request.at for work in self.queue]

    def _at(self, moment: float, kind: str, what: object) -> None:
        heapq.heappush(self._events, (moment, next(self._order), kind, what))

    def _pass_time(self, moment: float) -> None:
        until = min(moment, self._until)
        self.tally.replica_s += max(0.0, until - self.now) * len(self.replicas)
        self.now = moment

    # -- events

    def _arrive(self, request: Request) -> None:
        self.queue.append(Work(request))
        self._dispatch()

    def _ready(self, replica: Replica) -> None:
        if replica in self.replicas and replica.leaving_at is None:
            replica.is_ready = True
            if replica.ready_at > replica.ordered_at:
                self.starts.append((replica.kind, replica.ready_at - replica.ordered_at))
            self._dispatch()

    def _finish(self, what: tuple[Replica, Work, float]) -> None:
        replica, work, begun_at = what
        if work not in replica.running or work.begun_at != begun_at:
            return
        replica.running.discard(work)
        self.finished_cost += work.request.cost
        self.finished_estimate += work.request.estimate
        if replica.leaving_at is not None and not replica.running:
            self.replicas.remove(replica)
        self._dispatch()

    def _die(self, replica: Replica) -> None:
        if replica in self.replicas and self.now < self._until:
            self._requeue(replica)
            self._reconcile()

    def _kill(self, replica: Replica) -> None:
        if replica in self.replicas:
            self.tally.num_cut += len(replica.running)
            self._requeue(replica)

    def _requeue(self, replica: Replica) -> None:
        self.replicas.remove(replica)
        for work in sorted(replica.running, key=lambda w: -w.request.at):
            work.done = replica.done(work, self.now)
            self.queue.appendleft(work)
        replica.running.clear()
        self._dispatch()

    def _dispatch(self) -> None:
        while self.queue:
            free = [r for r in self.ready if len(r.running) < SLOTS]
            if not free:
                return
            replica = min(free, key=lambda r: len(r.running))
            work = self.queue.popleft()
            if work.first_at is None:
                work.first_at = self.now
                self.tally.waits_s.append(self.now - work.request.at)
            work.begun_at = self.now
            replica.running.add(work)
            left = max(0.0, work.request.cost - work.done)
            takes_s = left / replica.slot_speed
            self._at(self.now + takes_s, "finish", (replica, work, self.now))


def percentile(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(part * len(ordered)) - 1)] if ordered else 0.0
