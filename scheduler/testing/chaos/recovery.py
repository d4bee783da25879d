"""How long the cluster needed to recover, from the history of a run.

A fault *hits* the tasks that are worked on while it strikes: those of its node, and those of all
nodes when it strikes the control plane, the store or the clients' connections. For each hit:

* detection: seconds until its client is told that the attempt is over (or loses its stream, where
  that is what the fault does), if that comes before the next token;
* next token: seconds until its client has a token more;
* recomputed: tokens that were computed once more between this hit and the task's next.

Faults overlap, so a figure may hold what a later fault has added; none is left out for that.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Final

from scheduler.testing.chaos.history import (
    Accepted,
    Broke,
    Computed,
    Fault,
    History,
    Read,
    Seen,
    Sent,
)

#: A token that comes so soon after a fault was on its way already.
IN_FLIGHT_S: Final = 0.15


@dataclass(frozen=True, slots=True)
class Hit:
    """What a fault did to one task."""

    kind: str
    #: None: the attempt went on.
    detection_s: float | None
    #: From the fault's beginning, and from its end; None: none was left to come.
    next_token_s: float | None
    after_end_s: float | None
    #: None: nobody wrote down what was computed.
    num_recomputed: int | None


@dataclass(frozen=True, slots=True)
class Figures:
    """One kind of fault: counts, and medians with 99th percentiles, None where nothing is known."""

    kind: str
    num_faults: int
    num_hits: int
    lasted_s: tuple[float, float] | None
    detection_s: tuple[float, float] | None
    next_token_s: tuple[float, float] | None
    after_end_s: tuple[float, float] | None
    recomputed: tuple[float, float] | None


@dataclass(slots=True)
class _Story:
    """One task, as its client saw it; all lists are in order."""

    #: When it was told who works on the task, and who; None: nobody.
    holders: list[tuple[float, str | None]] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)
    breaks: list[float] = field(default_factory=list)
    #: When it was told that an attempt was over and the task was not.
    losses: list[float] = field(default_factory=list)
    #: When tokens were computed that had been computed before.
    repeats: list[float] = field(default_factory=list)


def hits(history: History) -> list[Hit]:
    """Every hit of every fault."""
    stories = _stories(history)
    has_diary = any(isinstance(record, Computed) for record in history.records)
    faults = sorted((r for r in history.records if isinstance(r, Fault)), key=lambda f: f.at)
    found: list[Hit] = []
    for story in stories.values():
        own = [fault for fault in faults if _is_hit(story, fault, history.nodes)]
        for fault, following in pairwise([*own, None]):
            assert fault is not None
            until = following.at if following is not None else math.inf
            hit = _hit(story, fault, until)
            found.append(hit if has_diary else replace(hit, num_recomputed=None))
    return found


def figures(history: History) -> list[Figures]:
    """What became of the hits, by kind of fault."""
    by_kind: dict[str, list[Hit]] = defaultdict(list)
    for hit in hits(history):
        by_kind[hit.kind].append(hit)
    faults: dict[str, list[Fault]] = defaultdict(list)
    for record in history.records:
        if isinstance(record, Fault):
            faults[record.kind].append(record)
    return [
        Figures(
            kind,
            len(faults[kind]),
            len(own := by_kind[kind]),
            middle_and_tail([fault.until - fault.at for fault in faults[kind]]),
            middle_and_tail([hit.detection_s for hit in own]),
            middle_and_tail([hit.next_token_s for hit in own]),
            middle_and_tail([hit.after_end_s for hit in own]),
            middle_and_tail([hit.num_recomputed for hit in own]),
        )
        for kind in sorted(faults)
    ]


def middle_and_tail(values: Sequence[float | None]) -> tuple[float, float] | None:
    """Median and 99th percentile, as values that were there; None where there are none."""
    known = sorted(value for value in values if value is not None)
    if not known:
        return None
    places = [max(0, math.ceil(part * len(known)) - 1) for part in (0.5, 0.99)]
    return known[places[0]], known[places[1]]


def _stories(history: History) -> dict[str, _Story]:
    stories: dict[str, _Story] = defaultdict(_Story)
    seeds: dict[str, int] = {}
    tasks: dict[int, str] = {}
    for record in history.records:
        match record:
            case Sent():
                seeds[record.key] = record.document["seed"]
            case Accepted():
                tasks[seeds[record.key]] = record.task_id
            case Seen():
                holder = record.runner if record.state == "leased" else None
                stories[record.task_id].holders.append((record.at, holder))
                if holder is None and not record.is_end:
                    stories[record.task_id].losses.append(record.at)
            case Read():
                stories[record.task_id].tokens.append(record.at)
            case Broke():
                stories[record.task_id].breaks.append(record.at)
    for seed, at in _repeats(history):
        if seed in tasks:
            stories[tasks[seed]].repeats.append(at)
    return stories


def _repeats(history: History) -> Iterator[tuple[int, float]]:
    known: set[tuple[int, int]] = set()
    computed = (record for record in history.records if isinstance(record, Computed))
    for record in sorted(computed, key=lambda record: record.at):
        key = record.seed, record.position
        if key in known:
            yield record.seed, record.at
        known.add(key)


def _is_hit(story: _Story, fault: Fault, nodes: Mapping[str, str]) -> bool:
    """Whether the task was being worked on, as far as its client knew, where the fault struck."""
    place = bisect_right(story.holders, fault.at, key=lambda each: each[0])
    holder = story.holders[place - 1][1] if place else None
    if holder is None:
        return False
    is_everywhere = fault.target not in nodes.values()
    return is_everywhere or nodes.get(holder) == fault.target


def _hit(story: _Story, fault: Fault, until: float) -> Hit:
    token = _first(story.tokens, fault.at + IN_FLIGHT_S)
    told = story.breaks if fault.target in ("control", "clients") else story.losses
    noticed = _first(told, fault.at)
    is_noticed = noticed is not None and (token is None or noticed < token) and noticed < until
    first, last = (bisect_left(story.repeats, moment) for moment in (fault.at, until))
    return Hit(
        fault.kind,
        noticed - fault.at if noticed is not None and is_noticed else None,
        token - fault.at if token is not None else None,
        max(0.0, token - fault.until) if token is not None else None,
        last - first,
    )


def _first(moments: Sequence[float], after: float) -> float | None:
    place = bisect_right(moments, after)
    return moments[place] if place < len(moments) else None
