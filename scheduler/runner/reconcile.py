"""Decides what to do about one replica: what is wanted against what TorchServe shows.

Level-triggered: each look starts from what is there, so it does not matter who made it so, or
what an earlier step was interrupted in. A replica with work in flight is not taken away because it
is no longer wanted; it drains first. One that cannot do its work any more is removed at once and
registered again at the next look, because TorchServe never revives a worker it has given up.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from scheduler.torchserve.management import Description

#: Time TorchServe gets beyond the model's own startup timeout to restart a worker that died.
RESTART_GRACE_S: Final = 30.0
#: Times in a row that a worker which says READY may lose what it was given, without finishing
#: anything: then it serves nobody, whatever it says.
MAX_LOSSES: Final = 4
#: A registration shows its worker at once; an empty list for longer is one that failed.
EMPTY_GRACE_S: Final = 5.0


class State(Enum):
    """What a replica is reported as."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


class Action(Enum):
    """What to do now."""

    NOTHING = "nothing"
    REGISTER = "register"
    UNREGISTER = "unregister"
    #: Unregister although leases may be left on it: they are lost.
    REMOVE_BROKEN = "remove broken"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A replica that should run, and where."""

    name: str
    model: str
    device_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """The state to report, what to do, and why."""

    state: State
    action: Action = Action.NOTHING
    reason: str = ""


def decide(
    wanted: Wanted | None,
    current: Description | None,
    *,
    in_flight: int,
    not_ready_s: float,
    startup_timeout_s: float,
    num_losses: int = 0,
    is_silent: bool = False,
) -> Verdict:
    """What to do about a replica that is wanted, or there, or both.

    Args:
        not_ready_s: how long it has been there without being ready.
        num_losses: times in a row that it lost its work.
        is_silent: whether it left work without a word for so long that TorchServe would have ended
            its worker, had it noticed.
    """
    if current is None:
        return Verdict(State.STARTING, Action.REGISTER, "it is not there")
    if wanted is None:
        return _go(in_flight, "it is not wanted any more")
    if wanted.device_ids != current.device_ids:
        given, there = list(wanted.device_ids), list(current.device_ids)
        return _go(in_flight, f"it is to run on devices {given} instead of {there}")
    if is_silent:
        return Verdict(State.STARTING, Action.REMOVE_BROKEN, "its worker has gone silent")
    if num_losses >= MAX_LOSSES:
        reason = f"it has lost its work {num_losses} times in a row and finished none"
        return Verdict(State.STARTING, Action.REMOVE_BROKEN, reason)
    if current.is_ready:
        return Verdict(State.READY)
    if len(current.workers) != 1 and not_ready_s > EMPTY_GRACE_S:
        reason = f"it has {len(current.workers)} workers instead of one"
        return Verdict(State.STARTING, Action.REMOVE_BROKEN, reason)
    if not_ready_s > startup_timeout_s + RESTART_GRACE_S:
        reason = f"its worker has not been ready for {not_ready_s:.0f} s"
        return Verdict(State.STARTING, Action.REMOVE_BROKEN, reason)
    return Verdict(State.STARTING, reason="its worker is loading")


def _go(in_flight: int, reason: str) -> Verdict:
    action = Action.UNREGISTER if in_flight == 0 else Action.NOTHING
    return Verdict(State.DRAINING, action, reason)
