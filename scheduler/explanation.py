"""Decides what to tell about a task: why it waits and until when, or the story of its attempts.

The estimate of a start. ``num_tasks`` of ``cost`` in all go before the task (see
``FairQueue.outlook``), on the slots of the replicas that are ready. A running task frees its slot
when what is left of it, and a task ahead takes its mean cost, each at the measured cost per second
of a slot. So at time t a slot that has ``left`` to do has begun

    begun(t) = 0                                        while  speed * t < left
             = 1 + floor((speed * t - left) / mean)     from then on

tasks, and the task itself begins at the least t at which all slots together have begun
``num_tasks + 1``. A tenant that may have only so many tasks in flight gets the same sum over so
many slots and its own tasks, and the later of the two moments counts. Estimated costs are bounds
from above; both are multiplied with the part of it that finished tasks have used.

It is an estimate: tasks that come later and go first, faults, and preemption are not in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import floor

from scheduler.attempt_story import AttemptStory, story
from scheduler.cluster_view import READY, ReplicaView, kept_slots, most_leased
from scheduler.fair_queue import begun_cost, waiting_cost
from scheduler.flow import Outlook, Tenant
from scheduler.scaling import WarmUp
from scheduler.service_rate import Rate
from scheduler.task import Attempt, Task, TaskState

WAITING = frozenset({TaskState.QUEUED, TaskState.DELAYED, TaskState.PAUSED})


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known about a task that waits, at one moment."""

    task: Task
    now: float
    outlook: Outlook
    tenant: Tenant
    #: Tasks of the tenant that are leased, over all models.
    num_in_flight: int
    #: Running tasks of the model.
    running: Sequence[Task]
    #: Replicas of the model that the connected runners report.
    replicas: Sequence[ReplicaView]
    num_desired: int
    rate: Rate | None
    class_weights: Mapping[str, int]
    #: How long a replica takes that is being started.
    warm_up: WarmUp = field(default_factory=WarmUp)

    @property
    def ready(self) -> list[ReplicaView]:
        return [replica for replica in self.replicas if replica.state == READY]

    @property
    def num_slots(self) -> int:
        """Tasks that can run at once; more may run while replicas drain."""
        return sum(replica.capacity for replica in self.ready)

    @property
    def num_kept(self) -> int:
        """Slots that are kept for others, because its flow holds half of all."""
        mine = [each for each in self.running if _flow_of(each) == _flow_of(self.task)]
        is_alone = all(each.tenant == self.task.tenant for each in self.running)
        if is_alone or len(mine) < most_leased(self.num_slots):
            return 0
        return kept_slots(self.num_slots)

    @property
    def num_free(self) -> int:
        """Slots it could have now."""
        return max(0, self.num_slots - self.num_kept - len(self.running))

    @property
    def is_held(self) -> bool:
        limit = self.tenant.max_in_flight
        return limit is not None and self.num_in_flight >= limit


@dataclass(frozen=True, slots=True)
class Shortage:
    """Something a waiting task waits for."""

    #: "paused", "delayed", "no_replica_desired", "no_replica_ready", "tenant_in_flight",
    #: "slots_busy", "own_tasks", "other_tenants" or "other_classes".
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Basis:
    """What an estimated start rests on."""

    num_tasks_ahead: int
    cost_ahead: int
    #: Whether more may be ahead than was counted.
    is_at_least: bool
    num_slots: int
    num_free: int
    #: Weighted tokens a second that all slots together are served; None: not measured.
    cost_per_s: float | None = None
    #: Seconds of the last minutes in which that was measured.
    measured_s: float = 0.0
    #: Whether every slot was busy then; if not, the true rate of all is less.
    was_full: bool = False
    #: What finished tasks have cost, as a part of what was estimated.
    used_ratio: float = 1.0
    #: Seconds that nine of ten starts of a replica took at most, of how many on what kind of
    #: device; None: a replica is ready, or none was measured.
    start_s: float | None = None
    num_starts: int = 0
    start_kind: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """What there is to tell."""

    task_id: str
    state: str
    #: One sentence.
    message: str
    #: What it waits for, what weighs most first; empty when it does not wait.
    short: tuple[Shortage, ...] = ()
    #: Its place in its own flow, from 1; None: it does not stand in it.
    position: int | None = None
    outlook: Outlook | None = None
    #: None: it does not wait, or ``why_unknown`` says why nobody can tell.
    estimated_start_at: float | None = None
    why_unknown: str = ""
    basis: Basis | None = None
    attempts: tuple[AttemptStory, ...] = field(default=())
    #: Seconds it has waited, and has been worked on, in all.
    waited_s: float = 0.0
    worked_s: float = 0.0


def explain_waiting(facts: Facts, attempts: Sequence[Attempt]) -> Explanation:
    """Why a task waits, and until when."""
    task, outlook = facts.task, facts.outlook
    short = tuple(_short(facts))
    starts_in_s, why_unknown = _starts_in_s(facts)
    stories = story(task, attempts, facts.now)
    return Explanation(
        task.id,
        task.state.value,
        short[0].message if short else "it goes next, and a slot is free",
        short,
        outlook.flow.num_tasks + 1 if task.state is TaskState.QUEUED else None,
        outlook,
        None if starts_in_s is None else facts.now + starts_in_s,
        why_unknown,
        _basis(facts),
        stories,
        *_totals(task, stories, facts.now),
    )


def explain_other(task: Task, attempts: Sequence[Attempt], now: float) -> Explanation:
    """The story of a task that runs or has ended."""
    stories = story(task, attempts, now)
    waited_s, worked_s = _totals(task, stories, now)
    message = (
        f"it {_ENDS.get(task.state, 'is worked on')} after {waited_s:.1f} s of waiting and "
        f"{worked_s:.1f} s of work in {len(stories)} attempts"
    )
    return Explanation(
        task.id,
        task.state.value,
        message,
        attempts=stories,
        waited_s=waited_s,
        worked_s=worked_s,
    )


_ENDS = {
    TaskState.SUCCEEDED: "succeeded",
    TaskState.FAILED: "failed",
    TaskState.CANCELLED: "was cancelled",
    TaskState.EXPIRED: "expired",
}


def _totals(task: Task, stories: Sequence[AttemptStory], now: float) -> tuple[float, float]:
    until = now if task.finished_at is None else task.finished_at
    worked_s = sum(attempt.duration_s for attempt in stories)
    return max(0.0, until - task.accepted_at - worked_s), worked_s


# ------------------------------------------------------------------------------- what is short


def _short(facts: Facts) -> list[Shortage]:
    checks = (_own_wish, _no_replica, _tenant_full, _no_slot, _behind_others)
    return [shortage for check in checks for shortage in check(facts)]


def _own_wish(facts: Facts) -> list[Shortage]:
    task = facts.task
    if task.state is TaskState.PAUSED:
        return [Shortage("paused", "its owner has paused it; it waits until it is resumed")]
    if task.state is TaskState.DELAYED and task.not_before is not None:
        left_s = max(0.0, task.not_before - facts.now)
        message = f"it waits {left_s:.1f} s more after {task.num_lost} lost attempts"
        return [Shortage("delayed", message)]
    return []


def _no_replica(facts: Facts) -> list[Shortage]:
    model = facts.task.model
    if not facts.num_desired:
        message = f"no replica of {model} is desired; an operator can change that"
        return [Shortage("no_replica_desired", message)]
    if facts.ready:
        return []
    why = [f"{r.name} is {r.state}" + (f": {r.detail}" if r.detail else "") for r in facts.replicas]
    told = "; ".join(why) or "no runner reports any"
    message = f"none of {facts.num_desired} replicas of {model} is ready: {told}"
    message += facts.warm_up.told()
    return [Shortage("no_replica_ready", message)]


def _tenant_full(facts: Facts) -> list[Shortage]:
    if not facts.is_held:
        return []
    message = (
        f"tenant {facts.tenant.name} has {facts.num_in_flight} tasks in flight of "
        f"{facts.tenant.max_in_flight} it may have"
    )
    return [Shortage("tenant_in_flight", message)]


def _no_slot(facts: Facts) -> list[Shortage]:
    if not facts.ready or facts.num_free:
        return []
    num_busy = min(len(facts.running), facts.num_slots)
    message = f"{num_busy} of {facts.num_slots} slots are busy"
    if num_busy < facts.num_slots:
        message += f", and {facts.num_slots - num_busy} kept for tenants that hold less than half"
    return [Shortage("slots_busy", message)]


def _behind_others(facts: Facts) -> list[Shortage]:
    outlook, found = facts.outlook, []
    mine = facts.class_weights.get(facts.task.priority_class, 0)
    if outlook.flow.num_tasks:
        message = f"{outlook.flow.num_tasks} of its tenant's own tasks go first"
        found.append(Shortage("own_tasks", message))
    if outlook.others.num_tasks:
        part = outlook.others
        message = f"{part.num_tasks} tasks of {part.num_flows} other tenants go first"
        found.append(Shortage("other_tenants", message))
    for name, part in sorted(outlook.classes.items()):
        weight = facts.class_weights.get(name, 0)
        kind = "a class of more weight" if weight > mine else "a class whose turn it is"
        message = f"{part.num_tasks} tasks of {name}, {kind}, go first"
        found.append(Shortage("other_classes", message))
    return found


# -------------------------------------------------------------------------- estimate of the start


def _basis(facts: Facts) -> Basis:
    outlook, rate = facts.outlook, facts.rate
    known = Basis(
        outlook.num_tasks, outlook.cost, outlook.is_at_least, facts.num_slots, facts.num_free
    )
    if not facts.ready:
        start = facts.warm_up
        known = replace(
            known,
            start_s=start.start_s,
            num_starts=start.num_starts,
            start_kind=start.device_kind,
        )
    if rate is None:
        return known
    return replace(
        known,
        cost_per_s=rate.per_slot * facts.num_slots,
        measured_s=rate.measured_s,
        was_full=rate.was_full,
        used_ratio=rate.used_ratio,
    )


def _flow_of(task: Task) -> tuple[str, str, str]:
    return task.model, task.priority_class, task.tenant


def _starts_in_s(facts: Facts) -> tuple[float | None, str]:
    """Seconds until it starts, or None and why nobody can tell."""
    task = facts.task
    if task.state is TaskState.PAUSED:
        return None, "it is paused"
    rest_s = max(0.0, (task.not_before or facts.now) - facts.now)
    if not facts.num_desired or not facts.ready:
        after_start_s = _after_start_s(facts) if facts.num_desired else None
        return (
            (None, "no replica is ready")
            if after_start_s is None
            else (max(rest_s, after_start_s), "")
        )
    if not facts.is_held and facts.outlook.num_tasks < facts.num_free:
        return rest_s, ""
    if facts.rate is None:
        return None, "how fast the model is served has not been measured yet"
    in_turn_s = _in_turn_s(facts, facts.rate)
    return max(rest_s, in_turn_s, _within_quota_s(facts, facts.rate)), ""


def _after_start_s(facts: Facts) -> float | None:
    """Seconds until a replica that is being started takes it; None: nobody can tell."""
    left_s, ahead = facts.warm_up.left_s(facts.now), facts.outlook
    if left_s is None or ahead.num_tasks < facts.warm_up.num_slots:
        return left_s
    if facts.rate is None:
        return None
    free = [0.0] * facts.warm_up.num_slots
    cost = ahead.cost * facts.rate.used_ratio
    return left_s + _begins_in_s(ahead.num_tasks, cost, free, facts.rate.per_slot)


def _in_turn_s(facts: Facts, rate: Rate) -> float:
    left = [*(_left(task, rate) for task in facts.running), *[0.0] * facts.num_free]
    ahead = facts.outlook
    return _begins_in_s(ahead.num_tasks, ahead.cost * rate.used_ratio, left, rate.per_slot)


def _within_quota_s(facts: Facts, rate: Rate) -> float:
    limit = facts.tenant.max_in_flight
    if limit is None:
        return 0.0
    own = [task for task in facts.running if task.tenant == facts.tenant.name]
    left = sorted(_left(task, rate) for task in own)[: max(limit, 1)]
    free = max(0, limit - facts.num_in_flight)
    if not left and not free:
        # What it has in flight is another model's; nobody here knows how fast that goes.
        return 0.0
    ahead = facts.outlook.flow
    return _begins_in_s(
        ahead.num_tasks, ahead.cost * rate.used_ratio, [*left, *[0.0] * free], rate.per_slot
    )


def _left(task: Task, rate: Rate) -> float:
    """What a running task is expected to cost yet; one that has used more than most has little."""
    expected = task.estimated_cost * rate.used_ratio - begun_cost(task)
    return max(expected, float(min(waiting_cost(task), max(task.cost_per_token, 1))))


def _begins_in_s(num_ahead: int, cost_ahead: float, left: Sequence[float], speed: float) -> float:
    """The formula of the module's docstring, by bisection."""
    mean = max(cost_ahead / num_ahead, 1.0) if num_ahead else 1.0
    low, high = 0.0, (max(left) + mean * (num_ahead + 1)) / speed
    for _ in range(60):
        middle = (low + high) / 2
        if _num_begun(middle * speed, left, mean) > num_ahead:
            high = middle
        else:
            low = middle
    return high


def _num_begun(done: float, left: Sequence[float], mean: float) -> int:
    return sum(1 + floor((done - each) / mean) for each in left if done >= each)
