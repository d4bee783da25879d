"""What is kept in memory of what a database holds, so that it need not be asked again.

All but documents is right only as long as nobody else writes. What follows an order, the flows of a
band and the queue of a flow, is kept up to a *horizon*: what lies beyond it is not known, and is
read when everything before it is gone.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from scheduler.flow import Flow
from scheduler.task import Task, TaskState

#: What is kept of tasks, in bytes of their documents and an allowance for the rest of each.
MAX_TASK_BYTES: Final = 32 * 1024 * 1024
_TASK_BYTES: Final = 2048
#: Flows of a band, and tasks of a flow, that are read at once.
PAGE: Final = 32
#: Entries of a band or a flow that are kept; of more than that the rest is read again.
_MOST: Final = 4096

#: Place of a task in its flow: who has the least goes next.
Place = tuple[int, bool, float, str]


class KnownTasks:
    """Tasks as they were last read or written, those used last."""

    def __init__(self, max_bytes: int = MAX_TASK_BYTES) -> None:
        self._max_bytes, self._num_bytes = max_bytes, 0
        #: By id: document, bytes, and the task if it is known how it stands.
        self._kept: OrderedDict[str, tuple[Mapping[str, Any], int, Task | None]] = OrderedDict()
        self._current: set[str] = set()
        #: Written by the command that runs.
        self._written: set[str] = set()

    def document(self, task_id: str) -> Mapping[str, Any] | None:
        """A document never changes, so what is kept is never wrong."""
        found = self._kept.get(task_id)
        return None if found is None else found[0]

    def task(self, task_id: str) -> Task | None:
        found = self._kept.get(task_id)
        if found is None:
            return None
        self._kept.move_to_end(task_id)
        return found[2] if task_id in self._current else None

    def keep(self, task: Task, num_bytes: int | None = None) -> None:
        """Keep a task; ``num_bytes`` of its document if that is new."""
        found = self._kept.get(task.id)
        if found is not None:
            num_bytes = found[1]
        elif num_bytes is None or num_bytes > self._max_bytes:
            return
        else:
            num_bytes += _TASK_BYTES
            self._num_bytes += num_bytes
        self._kept[task.id] = (task.document, num_bytes, task)
        self._current.add(task.id)
        self._shrink()

    def written(self, task_id: str) -> None:
        """A command has changed the task, and may yet fail."""
        self._written.add(task_id)

    def begin(self) -> None:
        """A command begins."""
        self._written.clear()

    def undo(self) -> None:
        """The command has failed."""
        self.doubt(self._written)
        self._written.clear()

    def doubt(self, task_ids: Iterable[str]) -> None:
        """It is not known any more how these stand."""
        self._current.difference_update(task_ids)

    def doubt_all(self) -> None:
        self._current.clear()

    def _shrink(self) -> None:
        while self._num_bytes > self._max_bytes and len(self._kept) > 1:
            task_id, (_, freed, _) = self._kept.popitem(last=False)
            self._current.discard(task_id)
            self._num_bytes -= freed


def place_of(task: Task) -> Place:
    """Greatest priority first, then earliest deadline (those without come last), then least id."""
    return -task.priority, task.deadline_at is None, task.deadline_at or 0.0, task.id


class Queue:
    """The queued tasks of a flow that go next."""

    def __init__(self, places: Sequence[Place], *, is_all: bool) -> None:
        """``places``: the first of the flow, in order."""
        self._places = list(places)
        self._horizon = None if is_all else self._places[-1]

    @property
    def is_all(self) -> bool:
        """Whether nothing lies beyond the horizon."""
        return self._horizon is None

    def first(self) -> str | None:
        """The id of the task that goes next; None when there is none up to the horizon."""
        return self._places[0][-1] if self._places else None

    def put(self, task: Task) -> None:
        """A task of the flow was written."""
        place = place_of(task)
        at = bisect_left(self._places, place)
        is_in = at < len(self._places) and self._places[at] == place
        if task.state is TaskState.QUEUED:
            if not is_in and (self._horizon is None or place <= self._horizon):
                insort(self._places, place)
                self._shorten()
        elif is_in:
            del self._places[at]

    def _shorten(self) -> None:
        if len(self._places) > _MOST:
            del self._places[_MOST // 2 :]
            self._horizon = self._places[-1]


class Turns:
    """The active flows of a band that go next."""

    def __init__(self, flows: Sequence[Flow], *, is_all: bool) -> None:
        """``flows``: the first of the band, in order."""
        # Places that flows have had are left where they are, and passed over when they come up.
        self._places = [_turn(flow) for flow in flows]
        self._horizon = None if is_all else self._places[-1]

    @property
    def is_all(self) -> bool:
        """Whether nothing lies beyond the horizon."""
        return self._horizon is None

    @property
    def is_crowded(self) -> bool:
        """Whether it is time to begin anew."""
        return len(self._places) > _MOST

    def put(self, flow: Flow) -> None:
        """A flow of the band was written."""
        place = _turn(flow)
        if flow.is_active and (self._horizon is None or place <= self._horizon):
            heapq.heappush(self._places, place)

    def first(self, flow_of: Callable[[str], Flow]) -> Flow | None:
        """The flow whose turn it is; None when there is none up to the horizon.

        ``flow_of`` tells how a tenant's flow stands.
        """
        while self._places:
            flow = flow_of(self._places[0][1])
            if flow.is_active and _turn(flow) == self._places[0]:
                return flow
            heapq.heappop(self._places)
        return None


def _turn(flow: Flow) -> tuple[int, str]:
    return flow.virtual_time, flow.tenant
