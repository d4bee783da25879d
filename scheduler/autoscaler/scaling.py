"""Decides how many replicas of a model there should be, from the work there is for it.

The *need* is the greater of two numbers of replicas. One carries the work that keeps coming:

    steady = arriving / (use_ratio * speed)

The other has what is queued, running and arriving done within the horizon: the time that a new
replica takes to start, and the target. A replica that is ready works through all of it, one that is
starting through what is left of it when it is ready, and one that is ordered now through the last
``target_s`` only:

    short  = queued + running + arriving * horizon - what those there can do within the horizon
    need   = there + short / (speed * target_s)        when they cannot
           = there + short / (speed * horizon)         when they can do more

So replicas that are starting are not ordered again, and none is that would come too late to help.
The number goes up when the need has been above it by more than the band for the whole up window,
at once from none. It goes down to the greatest need of the down window, with a pause after each
step, never while work waits longer than the target, and to none after a time without any work. As
long as no speed was measured, tasks are counted against slots instead.

Pure: what was seen and what was decided before goes in, a decision and what to remember comes out.
Moments are handed in. It knows no devices; how many replicas have room is handed in as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from math import ceil
from typing import Any, Final

from handlers.scale_section import Scale
from scheduler.scaling import Action

#: Seconds a start is taken for as long as none was measured.
ASSUMED_START_S: Final = 60.0
#: Terms of a start after which a replica that is not ready counts as failed.
FAILED_AFTER_STARTS: Final = 3.0
#: Seconds without a look at the load after which nothing is changed any more.
STALE_AFTER_S: Final = 15.0
#: Most replicas that are added at once: as many as there are, or this many.
MOST_ADDED: Final = 4


@dataclass(frozen=True, slots=True)
class Starting:
    """A replica that was ordered and is not ready."""

    device_kind: str
    age_s: float


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of a model at one moment; costs are weighted tokens."""

    now: float
    #: When the load was read; None: never.
    measured_at: float | None
    #: Tasks that are queued and may run.
    num_queued: int = 0
    #: What they are expected to cost, and what is left of running tasks.
    queued_cost: float = 0.0
    num_running: int = 0
    running_cost: float = 0.0
    #: Cost that comes in a second; None: not measured yet.
    arriving: float | None = None
    #: Whether any work was done since the look before: short work comes and goes between two.
    was_busy: bool = False
    #: Device kind of each replica that takes work.
    ready: tuple[str, ...] = ()
    starting: tuple[Starting, ...] = ()
    #: Cost that a replica with every slot busy works through in a second, by device kind.
    speeds: Mapping[str, float] = field(default_factory=dict)
    #: Tasks one replica works on at once.
    num_slots: int = 1
    #: 90th percentile of the seconds a replica takes to start; None: not measured.
    start_s: float | None = None
    #: Seconds from a claim to the first chunk; None: not measured.
    first_chunk_s: float | None = None
    #: Replicas that there is room for, those there are included.
    num_possible: int = 1_000_000


@dataclass(frozen=True, slots=True)
class Need:
    """How many replicas would be right, with a fraction, and what that follows from."""

    num: float
    #: Cost a second of one replica; None: not measured.
    speed: float | None
    target_s: float
    start_s: float
    #: Seconds until what is queued now would have begun; None: not known.
    wait_s: float | None
    #: Replicas that carry what keeps coming.
    steady: float
    #: Cost that those there cannot do within the horizon; less than nothing: what they have room
    #: for.
    short: float
    num_failed: int


@dataclass(frozen=True, slots=True)
class Memory:
    """What a decision leaves to the next one."""

    num_desired: int
    #: Moment and need of earlier decisions, as far back as the longest window.
    needs: tuple[tuple[float, float], ...] = ()
    #: Since when the windows have been filled; a decision needs a full one.
    began_at: float | None = None
    lowered_at: float | None = None
    #: Since when there has been nothing to do; None: there is something.
    idle_since: float | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """How many replicas there should be from now on, and why."""

    action: Action
    before: int
    after: int
    #: In a word, such as "steady" or "at_max".
    reason: str
    #: As a sentence.
    message: str
    inputs: Mapping[str, Any]
    #: Replicas more that would be right, were there room for them.
    lacking: int = 0


def started(num_desired: int, num_current: int, now: float) -> Memory:
    """What to remember after a restart: nothing goes down before a window has passed."""
    most = max(num_desired, num_current)
    return Memory(most, ((now, float(most)),), now)


def decide(rule: Scale, seen: Seen, memory: Memory) -> tuple[Decision, Memory]:
    """The number of replicas from now on."""
    now, before = seen.now, memory.num_desired
    bounded = rule.clamped(before)
    if seen.measured_at is None or now - seen.measured_at > STALE_AFTER_S:
        why = (
            "the load has not been read"
            if seen.measured_at is None
            else (f"the load was read {now - seen.measured_at:.0f} s ago")
        )
        return _nothing(before, "stale", f"{why}; nothing is changed by it", seen, None), memory
    need = need_of(rule, seen)
    memory = _remembered(rule, seen, need, memory)
    after, reason, message = _number(rule, seen, need, replace(memory, num_desired=bounded))
    if after == bounded != before:
        reason, message = "bounds", f"{before} is not within {rule.min} and {rule.max}"
    action = _action(before, after)
    if action is Action.DOWN:
        memory = replace(memory, lowered_at=now)
    wanted = max(after, min(ceil(_lasting(rule, memory, now)), rule.max))
    lacking = max(0, wanted - seen.num_possible)
    decision = Decision(action, before, after, reason, message, _inputs(seen, need), lacking)
    return decision, replace(memory, num_desired=after)


def need_of(rule: Scale, seen: Seen) -> Need:
    """How many replicas would be right for what is seen."""
    start_s = ASSUMED_START_S if seen.start_s is None else seen.start_s
    target_s = _target_s(rule, seen)
    coming = [s for s in seen.starting if s.age_s <= FAILED_AFTER_STARTS * max(start_s, target_s)]
    num_failed = len(seen.starting) - len(coming)
    there = len(seen.ready) + len(coming)
    speed = _speed(seen)
    has_work = seen.num_queued + seen.num_running > 0
    if speed is None:
        tasks = seen.num_queued + seen.num_running
        steady = tasks / (seen.num_slots * rule.use_ratio)
        num = max(steady, 1.0 if has_work else 0.0) + num_failed
        wait_s = None if seen.num_queued else 0.0
        return Need(num, None, target_s, start_s, wait_s, steady, 0.0, num_failed)
    arriving = seen.arriving or 0.0
    horizon_s = start_s + target_s
    ready_speed = sum(seen.speeds.get(kind, speed) for kind in seen.ready)
    able = ready_speed * horizon_s
    for each in coming:
        left_s = max(0.0, start_s - each.age_s)
        able += seen.speeds.get(each.device_kind, speed) * (horizon_s - left_s)
    steady = arriving / (rule.use_ratio * speed)
    short = seen.queued_cost + seen.running_cost + arriving * horizon_s - able
    within_s = target_s if short > 0 else horizon_s
    num = max(steady, there + short / (speed * within_s), 1.0 if has_work else 0.0)
    wait_s = seen.queued_cost / ready_speed if ready_speed else None
    if not seen.queued_cost:
        wait_s = 0.0
    return Need(num + num_failed, speed, target_s, start_s, wait_s, steady, short, num_failed)


def _target_s(rule: Scale, seen: Seen) -> float:
    """Seconds that work may wait until a replica takes it."""
    if rule.target_ttft_s is None:
        return rule.target_wait_s
    # What the first chunk takes after the claim is not to be had by waiting less.
    rest_s = rule.target_ttft_s - (seen.first_chunk_s or 0.0)
    return max(rest_s, 0.1 * rule.target_ttft_s)


def _speed(seen: Seen) -> float | None:
    """Cost a second of one replica more: the mean of those there, else of all that is known."""
    there = [seen.speeds[kind] for kind in seen.ready if kind in seen.speeds]
    known = there or list(seen.speeds.values())
    return sum(known) / len(known) if known else None


def _remembered(rule: Scale, seen: Seen, need: Need, memory: Memory) -> Memory:
    now = seen.now
    oldest = now - max(rule.up_window_s, rule.down_window_s)
    # The last one before the window still holds at its beginning.
    needs = [*memory.needs, (now, need.num)]
    first = max((i for i, (at, _) in enumerate(needs) if at <= oldest), default=0)
    is_busy = seen.num_queued + seen.num_running > 0 or seen.was_busy
    idle_since = None if is_busy else now if memory.idle_since is None else memory.idle_since
    return replace(
        memory,
        needs=tuple(needs[first:]),
        began_at=now if memory.began_at is None else memory.began_at,
        idle_since=idle_since,
    )


def _number(rule: Scale, seen: Seen, need: Need, memory: Memory) -> tuple[int, str, str]:
    """Replicas from now on, and why; ``memory`` has the number within its bounds."""
    current = memory.num_desired
    has_work = seen.num_queued + seen.num_running > 0
    if not current and has_work:
        wanted = max(1, min(ceil(need.num), MOST_ADDED))
        return _within(rule, seen, wanted, "from_zero", "there is work and no replica")
    if need.num > current * (1 + rule.band_ratio):
        return _upwards(rule, seen, need, memory)
    return _downwards(rule, seen, need, memory)


def _upwards(rule: Scale, seen: Seen, need: Need, memory: Memory) -> tuple[int, str, str]:
    current, now = memory.num_desired, seen.now
    if current >= rule.max:
        return current, "at_max", f"{need.num:.1f} are needed; at most {rule.max} are allowed"
    if current >= seen.num_possible:
        return current, "no_room", f"{need.num:.1f} are needed; there is room for {current}"
    least = _lasting(rule, memory, now)
    if least <= current * (1 + rule.band_ratio):
        told = f"{need.num:.1f} are needed, not yet for {rule.up_window_s:g} s"
        return current, "up_window", told
    wanted = min(ceil(least), max(2 * current, current + MOST_ADDED))
    reason = "queue" if need.num > need.steady else "steady"
    told = f"{least:.1f} are needed"
    if need.wait_s is not None:
        told += f"; what is queued waits {need.wait_s:.1f} s, {need.target_s:g} s are aimed at"
    return _within(rule, seen, wanted, reason, told)


def _lasting(rule: Scale, memory: Memory, now: float) -> float:
    """What was needed all through the up window."""
    if memory.began_at is None or now - memory.began_at < rule.up_window_s:
        return 0.0
    return min(num for at, num in memory.needs if at >= now - rule.up_window_s)


def _downwards(rule: Scale, seen: Seen, need: Need, memory: Memory) -> tuple[int, str, str]:
    current, now = memory.num_desired, seen.now
    if memory.idle_since is not None and rule.min == 0 and current:
        idle_s, until_s = now - memory.idle_since, max(rule.idle_s, 2 * need.start_s)
        if idle_s >= until_s:
            return 0, "idle", f"there has been nothing to do for {idle_s:.0f} s"
    most = max(num for at, num in memory.needs)
    least = max(rule.min, 1 if current else 0)
    if current <= least:
        return current, "enough", f"{need.num:.1f} are needed; {current} is the least"
    if ceil(most) >= current or most >= current * (1 - rule.band_ratio):
        return current, "enough", f"{need.num:.1f} are needed, {most:.1f} in the last window"
    if memory.began_at is None or now - memory.began_at < rule.down_window_s:
        return current, "down_window", f"{most:.1f} are needed, not yet for a whole window"
    if seen.arriving is None:
        return current, "not_measured", "how much work comes has not been measured yet"
    if need.wait_s is None or need.wait_s > need.target_s:
        return current, "wait_over_target", "work waits longer than is aimed at"
    if memory.lowered_at is not None and now - memory.lowered_at < rule.cooldown_s:
        return current, "cool_down", f"{now - memory.lowered_at:.0f} s after the last step down"
    return (
        max(ceil(most), least),
        "steady",
        f"{most:.1f} were needed at most in the last {rule.down_window_s:g} s",
    )


def _within(rule: Scale, seen: Seen, wanted: int, reason: str, told: str) -> tuple[int, str, str]:
    most = min(rule.max, max(seen.num_possible, rule.min))
    return max(rule.min, min(wanted, most)), reason, told


def _action(before: int, after: int) -> Action:
    return Action.NOTHING if after == before else Action.UP if after > before else Action.DOWN


def _nothing(num: int, reason: str, message: str, seen: Seen, need: Need | None) -> Decision:
    return Decision(Action.NOTHING, num, num, reason, message, _inputs(seen, need))


def _inputs(seen: Seen, need: Need | None) -> dict[str, Any]:
    """What a person is shown, and no more digits than it has."""
    document = {
        "num_queued": seen.num_queued,
        "queued_cost": round(seen.queued_cost),
        "num_running": seen.num_running,
        "running_cost": round(seen.running_cost),
        "arriving": None if seen.arriving is None else round(seen.arriving, 2),
        "num_ready": len(seen.ready),
        "num_starting": len(seen.starting),
        "speeds": {kind: round(speed, 2) for kind, speed in sorted(seen.speeds.items())},
        "num_possible": seen.num_possible,
        "measured_at": seen.measured_at,
    }
    if need is not None:
        document |= {name: _rounded(value) for name, value in asdict(need).items()}
    return document


def _rounded(value: Any) -> Any:
    return round(value, 2) if isinstance(value, float) else value
