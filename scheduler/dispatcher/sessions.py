"""Who is there to work: the runners, their replicas, and how much each may still take.

Decides which replica gets the next tasks of a model. A replica's free slots are its capacity less
the leases it has been given and not finished; what a runner reports as in flight is only shown,
because it is always a little old. Moments are handed in; this reads no clock and knows no stream.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from scheduler.cluster_view import READY, HoldingView, NodeState, NodeView, ReplicaView
from scheduler.dispatcher.course import Course

#: Heartbeats of a runner by which its clock is judged.
_BEATS_COMPARED: Final = 5


@dataclass(frozen=True, slots=True)
class Slot:
    """Room for up to ``limit`` tasks of a model."""

    runner_id: str
    #: The stream it was seen on; a later one of the same runner starts afresh.
    connection: str
    replica: str
    limit: int
    #: What the replica runs on.
    device_kind: str = ""
    #: The container that is in, by provider and by what that calls it; empty: none.
    provider: str = ""
    container: str = ""


@dataclass(frozen=True, slots=True)
class Room:
    """Slots of all replicas that take tasks of a model."""

    free: int
    capacity: int
    #: Of those that are taken, whose task is about to end.
    ending: int = 0


@dataclass(frozen=True, slots=True)
class LeaseKey:
    """One lease of one task."""

    task_id: str
    fence: int


@dataclass(slots=True)
class _Lease:
    replica: str
    course: Course = field(default_factory=Course)


@dataclass(slots=True)
class _Runner:
    runner_id: str
    connection: str
    #: What it said in its hello and since, replicas apart.
    view: NodeView
    replicas: dict[str, ReplicaView] = field(default_factory=dict)
    #: Those that are not finished.
    leases: dict[LeaseKey, _Lease] = field(default_factory=dict)
    #: When its stream broke; None while it is open.
    lost_at: float | None = None
    #: Seconds by which its clock was ahead when its last heartbeats arrived.
    ahead_s: deque[float] = field(default_factory=lambda: deque(maxlen=_BEATS_COMPARED))

    def num_leases(self, replica: str) -> int:
        return sum(lease.replica == replica for lease in self.leases.values())

    def num_ending(self, replica: str, now: float) -> int:
        own = (lease for lease in self.leases.values() if lease.replica == replica)
        return sum(lease.course.is_ending(now) for lease in own)


class Sessions:
    """Every runner that is connected, or was a short while ago."""

    def __init__(self) -> None:
        self._runners: dict[str, _Runner] = {}
        #: Devices by replica that should run, by runner; a runner without an entry keeps what runs.
        self._wanted: dict[str, Mapping[str, tuple[int, ...]]] = {}

    def __repr__(self) -> str:
        connected = sum(r.lost_at is None for r in self._runners.values())
        leases = sum(len(r.leases) for r in self._runners.values())
        return f"<Sessions connected={connected}/{len(self._runners)} leases={leases}>"

    def opened(self, view: NodeView, connection: str, leases: dict[LeaseKey, str]) -> None:
        """A runner said hello; ``leases`` are those it keeps, with their replicas."""
        shown = {replica.name: replica for replica in view.replicas}
        held = {lease: _Lease(replica) for lease, replica in leases.items()}
        self._runners[view.runner_id] = _Runner(view.runner_id, connection, view, shown, held)

    def want(self, runner_id: str, replicas: Mapping[str, tuple[int, ...]] | None) -> None:
        """What a runner should run, and on which devices; nothing else of it takes tasks. None: all
        that it runs takes tasks."""
        if replicas is None:
            self._wanted.pop(runner_id, None)
        else:
            self._wanted[runner_id] = dict(replicas)

    def closed(self, runner_id: str, connection: str, now: float) -> None:
        """A stream broke. Nothing changes when a newer one has taken its place."""
        runner = self._runners.get(runner_id)
        if runner is not None and runner.connection == connection:
            runner.lost_at = now

    def forget_lost(self, lost_before: float) -> list[str]:
        """Forget runners that have been away since ``lost_before`` or longer; their ids."""
        gone = [
            runner_id
            for runner_id, runner in self._runners.items()
            if runner.lost_at is not None and runner.lost_at <= lost_before
        ]
        for runner_id in gone:
            del self._runners[runner_id]
            self._wanted.pop(runner_id, None)
        return gone

    def reported(
        self, runner_id: str, replicas: Sequence[ReplicaView], state: NodeState, now: float
    ) -> set[str]:
        """A runner's replicas and its node as they are now; the models whose replicas changed."""
        runner = self._runners.get(runner_id)
        if runner is None:
            return set()
        runner.view = replace(runner.view, state=state, heard_at=now)
        before, after = runner.replicas, {replica.name: replica for replica in replicas}
        runner.replicas = after
        names = {*before, *after}
        changed = [n for n in names if _settled(before.get(n)) != _settled(after.get(n))]
        return {(after.get(name) or before[name]).model for name in changed}

    def told_the_time(self, runner_id: str, ahead_s: float) -> None:
        """A heartbeat of a runner came whose clock was so far ahead of ours."""
        if (runner := self._runners.get(runner_id)) is not None:
            runner.ahead_s.append(ahead_s)

    def holds(self, runner_id: str, holdings: tuple[HoldingView, ...]) -> None:
        """What a runner has of models' files now."""
        if (runner := self._runners.get(runner_id)) is not None:
            runner.view = replace(runner.view, holdings=holdings)

    def leased(self, slot: Slot, lease: LeaseKey) -> bool:
        """Note a lease that was claimed for a slot; False when that session is no longer there, or
        its replica is to go."""
        runner = self._runners.get(slot.runner_id)
        if runner is None or runner.connection != slot.connection or runner.lost_at is not None:
            return False
        replica = runner.replicas.get(slot.replica)
        if replica is None or not self._is_wanted(runner, replica):
            return False
        runner.leases[lease] = _Lease(slot.replica)
        return True

    def progressed(self, runner_id: str, lease: LeaseKey, num_left: int, now: float) -> bool:
        """A task has produced something, and may produce ``num_left`` tokens more; whether it is
        about to end and was not when it last did."""
        runner = self._runners.get(runner_id)
        known = runner.leases.get(lease) if runner is not None else None
        return known is not None and known.course.progressed(num_left, now)

    def ended(self, runner_id: str, lease: LeaseKey) -> None:
        """A lease is over, however it ended."""
        if (runner := self._runners.get(runner_id)) is not None:
            runner.leases.pop(lease, None)

    def leases(self, runner_id: str) -> set[LeaseKey]:
        """Leases of a runner that are not finished."""
        runner = self._runners.get(runner_id)
        return set() if runner is None else set(runner.leases)

    def next_slot(self, model: str, avoid: frozenset[str] = frozenset()) -> Slot | None:
        """The least loaded replica of the model that can take a task, or None; of runners that are
        not to be avoided.

        Its limit keeps replicas level: it takes no more than brings it past the next one.
        """
        ready = self._ready(model)
        free = [e for e in ready if e[0] < e[1].capacity and e[2].runner_id not in avoid]
        if not free:
            return None
        free.sort(key=lambda e: (e[0] / e[1].capacity, e[1].name, e[2].runner_id))
        load, replica, runner = free[0]
        limit = replica.capacity - load
        if len(free) > 1:
            limit = min(limit, max(1, free[1][0] - load + 1))
        return Slot(
            runner.runner_id,
            runner.connection,
            replica.name,
            limit,
            runner.view.device_kind,
            runner.view.provider,
            runner.view.container,
        )

    def room(self, model: str, now: float) -> Room:
        """How much the model's replicas may still take, and will in a moment."""
        ready = self._ready(model)
        return Room(
            free=sum(max(0, replica.capacity - load) for load, replica, _ in ready),
            capacity=sum(replica.capacity for _, replica, _ in ready),
            ending=sum(runner.num_ending(replica.name, now) for _, replica, runner in ready),
        )

    def _ready(self, model: str) -> list[tuple[int, ReplicaView, _Runner]]:
        """Replicas that take tasks, with their leases."""
        return [
            (runner.num_leases(replica.name), replica, runner)
            for runner in self._runners.values()
            if runner.lost_at is None
            for replica in runner.replicas.values()
            if replica.model == model
            and replica.state == READY
            and self._is_wanted(runner, replica)
        ]

    def _is_wanted(self, runner: _Runner, replica: ReplicaView) -> bool:
        wanted = self._wanted.get(runner.runner_id)
        return wanted is None or wanted.get(replica.name) == replica.device_ids

    def models(self) -> set[str]:
        """Models some connected runner has a replica of."""
        runners = [r for r in self._runners.values() if r.lost_at is None]
        return {replica.model for runner in runners for replica in runner.replicas.values()}

    def nodes(self) -> list[NodeView]:
        """Every runner, by node."""
        runners = sorted(self._runners.values(), key=lambda r: (r.view.node, r.runner_id))
        return [_view(runner) for runner in runners]


def _settled(replica: ReplicaView | None) -> ReplicaView | None:
    """The view without what changes with every task."""
    return None if replica is None else replace(replica, in_flight=0, detail="", engine=None)


def _view(runner: _Runner) -> NodeView:
    replicas = tuple(
        replace(replica, in_flight=runner.num_leases(replica.name))
        for _, replica in sorted(runner.replicas.items())
    )
    return replace(
        runner.view,
        connected=runner.lost_at is None,
        replicas=replicas,
        # A heartbeat that was under way for a while makes a clock seem behind: the swiftest counts.
        clock_skew_s=max(runner.ahead_s, default=None),
    )
