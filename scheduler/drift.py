"""What has drifted: what the checks of ``scheduler/reconciliation`` find, and what they count."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was not as it should be."""

    #: What it is about: a task, a flow, a replica, a runner.
    subject: str
    #: What was wrong, for a person.
    problem: str
    #: Whether it is put right; if not, somebody has to see to it.
    is_repaired: bool = True


@dataclass(frozen=True, slots=True)
class Tally:
    """What one check has come to since this control plane began."""

    name: str
    looks_at: str
    repair: str
    every_s: float
    num_looks: int = 0
    #: Things that were not as they should be, and how many of those were put right.
    num_found: int = 0
    num_repaired: int = 0
    #: Looks that ended with an error of ours.
    num_failed: int = 0
    #: Seconds since the epoch; None: it has not looked yet.
    looked_at: float | None = None
    #: What the last look found and could not put right.
    open: tuple[Finding, ...] = ()
