"""Every move of a task, as a function over a transaction: what it needs, changes and refuses.

``base`` has what they share; ``intake`` lets work in, ``dispatch`` gives it to replicas,
``ownership`` is what owners may do, ``upkeep`` what happens by itself, ``repairs`` what puts right
rows that do not belong together.
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
    hand_over,
    release,
    release_others,
    renew,
    succeed,
)
from scheduler.moves.intake import add_all, admit, submit
from scheduler.moves.ownership import cancel, pause, requeue, resume
from scheduler.moves.repairs import (
    free_unheld,
    free_unrenewed,
    mend_journal,
    mend_request,
    miscount,
    recount,
    remove_orphans,
)
from scheduler.moves.upkeep import (
    clear,
    end_pauses,
    expire_overdue,
    lose_expired,
    preempt,
    purge,
    renew_all,
)

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
    "end_pauses",
    "expire_overdue",
    "fail",
    "free_unheld",
    "free_unrenewed",
    "hand_over",
    "lose_expired",
    "mend_journal",
    "mend_request",
    "miscount",
    "owned",
    "pause",
    "preempt",
    "purge",
    "recount",
    "release",
    "release_others",
    "remove_orphans",
    "renew",
    "renew_all",
    "requeue",
    "resume",
    "submit",
    "succeed",
]
