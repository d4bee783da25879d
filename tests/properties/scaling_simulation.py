"""Work that flows like water through replicas, for the decider to look at.

So much cost comes in a second, those that are ready work through it, the rest waits. Replicas that
are ordered are ready after a while, or never. It has no chance in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from handlers.scale_section import Scale
from scheduler.autoscaler.load import LoadMeter
from scheduler.autoscaler.scaling import Decision, Memory, Seen, Starting, decide, started
from scheduler.scaling import ModelLoad

SPEED = 100.0
SLOTS = 4
TICK_S = 5.0
#: Seconds of work that a ready replica holds in its slots.
HELD_S = 4.0


@dataclass
class Pool:
    """A model's replicas and its work."""

    rule: Scale
    #: Cost that comes in a second, at a moment.
    rate: Callable[[float], float]
    start_s: float = 20.0
    #: Ordinals of replicas that never become ready.
    stuck: frozenset[int] = frozenset()
    num_ready: int = 1
    now: float = 0.0
    backlog: float = 0.0
    served: float = 0.0
    #: Moment at which each was ordered, and its ordinal.
    ordered: list[tuple[float, int]] = field(default_factory=list)
    num_ordered: int = 0
    memory: Memory | None = None
    load: LoadMeter = field(default_factory=LoadMeter)
    decisions: list[Decision] = field(default_factory=list)

    @property
    def running(self) -> float:
        return min(self.backlog, self.num_ready * SPEED * HELD_S)

    @property
    def wait_s(self) -> float:
        """Seconds until what comes now is begun."""
        speed = self.num_ready * SPEED
        return (self.backlog - self.running) / speed if speed else float("inf")

    def run(self, seconds: float) -> list[Decision]:
        """The decisions of this time."""
        first = len(self.decisions)
        for _ in range(int(seconds / TICK_S)):
            self._flow()
            self._decide()
        return self.decisions[first:]

    def restart_scaler(self) -> None:
        """What only its memory knew is gone; the number it decided on last is in the store."""
        assert self.memory is not None
        self.memory = started(self.memory.num_desired, self.num_ready + len(self.ordered), self.now)
        self.load = LoadMeter()

    def seen(self) -> Seen:
        queued, running = self.backlog - self.running, self.running
        load = ModelLoad(all_queued_cost=queued, running_cost=running, served_cost=self.served)
        self.load.note(self.now, load, self.start_s)
        return Seen(
            self.now,
            self.now,
            num_queued=round(queued / 50 + 0.499),
            queued_cost=queued,
            num_running=round(running / 50 + 0.499),
            running_cost=running,
            arriving=self.load.arriving(1.0),
            was_busy=self.load.was_busy(),
            ready=("cpu",) * self.num_ready,
            starting=tuple(Starting("cpu", self.now - at) for at, _ in self.ordered),
            speeds={"cpu": SPEED},
            num_slots=SLOTS,
            start_s=self.start_s,
        )

    def _flow(self) -> None:
        came = self.rate(self.now) * TICK_S
        done = min(self.backlog + came, self.num_ready * SPEED * TICK_S)
        self.backlog += came - done
        self.served += done
        self.now += TICK_S
        for entry in list(self.ordered):
            at, ordinal = entry
            if self.now - at >= self.start_s and ordinal not in self.stuck:
                self.ordered.remove(entry)
                self.num_ready += 1

    def _decide(self) -> None:
        memory = self.memory or Memory(self.num_ready)
        decision, self.memory = decide(self.rule, self.seen(), memory)
        self.decisions.append(decision)
        for _ in range(decision.after - self.num_ready - len(self.ordered)):
            self.ordered.append((self.now, self.num_ordered))
            self.num_ordered += 1
        for _ in range(self.num_ready + len(self.ordered) - decision.after):
            if self.ordered:
                self.ordered.pop()
            else:
                self.num_ready -= 1
