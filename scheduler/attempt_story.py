"""The story of a task's attempts: each with the wait before it and what it produced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from scheduler.task import Attempt, Task


@dataclass(frozen=True, slots=True)
class AttemptStory:
    """One attempt, and the wait before it."""

    number: int
    runner: str
    replica: str
    outcome: str
    reason: str
    started_at: float
    #: Seconds from acceptance, or from the end of the attempt before, to its start.
    waited_s: float
    #: Seconds it took, so far if it runs.
    duration_s: float
    #: Tokens it has added to the journal.
    num_tokens: int


def story(task: Task, attempts: Sequence[Attempt], now: float) -> tuple[AttemptStory, ...]:
    """Each attempt with the wait before it and what it produced."""
    waits_from = [task.accepted_at, *(attempt.ended_at or now for attempt in attempts)]
    tokens = [*(attempt.num_tokens_before for attempt in attempts), task.num_tokens]
    return tuple(
        AttemptStory(
            attempt.number,
            attempt.runner,
            attempt.replica,
            attempt.outcome,
            attempt.reason,
            attempt.started_at,
            max(0.0, attempt.started_at - since),
            max(0.0, (attempt.ended_at or now) - attempt.started_at),
            after - before,
        )
        for attempt, since, (before, after) in zip(
            attempts, waits_from, pairwise(tokens), strict=False
        )
    )
