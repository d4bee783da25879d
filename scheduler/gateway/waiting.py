"""Events of a task, with explanations in between for as long as it waits.

A task that has waited for a moment is explained at once, and from then on whenever there is
something new to tell, but not more often than every few seconds. An explanation has the cursor of
the event before it: who comes back with it misses no output.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Final

from scheduler.errors import TaskNotFound
from scheduler.explanation import WAITING, Explanation
from scheduler.gateway.front import Front
from scheduler.task import Task, TaskEvent

#: Seconds a task waits before it is explained: most are granted before anybody could read that.
GRACE_S: Final = 1.0
#: Seconds between two explanations.
EVERY_S: Final = 3.0
#: An estimated start that moved by less than this part of what is left is no news.
NEWS_RATIO: Final = 0.1
#: Nor one that moved by less than so many seconds.
NEWS_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Waits:
    """A task still waits, and why."""

    cursor: int
    explanation: Explanation


async def follow(
    front: Front, task_id: str, cursor: int, heartbeat_s: float | None = None
) -> AsyncGenerator[TaskEvent | Waits | None, None]:
    """As ``Front.follow``, with explanations."""
    waiting = _Waiting()
    silent_s = 0.0
    async with aclosing(front.follow(task_id, cursor, GRACE_S)) as events:
        async for event in events:
            if event is not None:
                cursor, silent_s = event.cursor, 0.0
                waiting.heard(event)
                yield event
            else:
                silent_s += GRACE_S
            if waiting.is_due(front.now()):
                told = await _explained(front, task_id)
                if told is not None and waiting.is_news(told, front.now()):
                    silent_s = 0.0
                    yield Waits(cursor, told)
            if heartbeat_s is not None and silent_s >= heartbeat_s:
                silent_s = 0.0
                yield None


async def _explained(front: Front, task_id: str) -> Explanation | None:
    """None: it was removed just now, which the events will tell."""
    try:
        return await front.explainer.explain(task_id)
    except TaskNotFound:
        return None


class _Waiting:
    """Decides when there is something to explain. It reads no clock."""

    def __init__(self) -> None:
        self._task: Task | None = None
        self._last: Explanation | None = None
        self._looked_at = 0.0

    def heard(self, event: TaskEvent) -> None:
        if event.task is not None:
            self._task = event.task

    def is_due(self, now: float) -> bool:
        task = self._task
        if task is None or task.state not in WAITING:
            self._last = None
            return False
        since = task.queued_at if self._last is None else self._looked_at + EVERY_S - GRACE_S
        is_due = now - since >= GRACE_S
        if is_due:
            self._looked_at = now
        return is_due

    def is_news(self, told: Explanation, now: float) -> bool:
        """Whether it says something that the last one did not; what does not wait is told by
        events."""
        if all(told.state != state.value for state in WAITING):
            return False
        before, self._last = self._last, told
        if before is None or _but_times(before) != _but_times(told):
            return True
        if before.estimated_start_at is None or told.estimated_start_at is None:
            return before.estimated_start_at is not told.estimated_start_at
        moved_s = abs(told.estimated_start_at - before.estimated_start_at)
        if moved_s >= max(NEWS_S, NEWS_RATIO * (told.estimated_start_at - now)):
            return True
        # Compared with what was told, so that many small steps are news in the end.
        self._last = before
        return False


def _but_times(told: Explanation) -> Explanation:
    """What does not change from one moment to the next by itself."""
    codes = tuple(replace(shortage, message="") for shortage in told.short)
    return replace(
        told,
        message="",
        short=codes,
        outlook=None,
        estimated_start_at=None,
        basis=None,
        waited_s=0.0,
        worked_s=0.0,
    )
