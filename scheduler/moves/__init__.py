"""Every move of a task, as a function over a transaction: what it needs, changes and refuses.

``base`` has what they share; ``intake`` lets work in, ``dispatch`` gives it to replicas,
``ownership`` is what owners may do, ``upkeep`` what happens by itself.
"""

from scheduler.moves.base import (
    CANCELLED_STATUS,
    EXPIRED_STATUS,
    Backoff,
    Change,
    Outcome,
    Preemption,
    Rules,
    attempts,
    owned,
)
from scheduler.moves.dispatch import (
    append,
    claim,
    fail,
    release,
    release_others,
    renew,
    succeed,
)
from scheduler.moves.intake import add_all, admit, submit
from scheduler.moves.ownership import cancel, pause, requeue, resume
from scheduler.moves.upkeep import clear, extend_all, preempt, purge, sweep

__all__ = [
    "CANCELLED_STATUS",
    "EXPIRED_STATUS",
    "Backoff",
    "Change",
    "Outcome",
    "Preemption",
    "Rules",
    "add_all",
    "admit",
    "append",
    "attempts",
    "cancel",
    "claim",
    "clear",
    "extend_all",
    "fail",
    "owned",
    "pause",
    "preempt",
    "purge",
    "release",
    "release_others",
    "renew",
    "requeue",
    "resume",
    "submit",
    "succeed",
    "sweep",
]
