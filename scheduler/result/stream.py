"""From producer to reader: who watches which task, and what they have not been told yet.

Live news go to a watcher's mailbox, which is bounded: one that falls behind, like one that has only
begun, reads the journal instead. So a slow reader costs no memory and misses nothing.

It knows neither the store nor the rules.
"""

from __future__ import annotations

import asyncio
from collections import deque

from scheduler.task import JournalChunk, Task

#: News kept for a watcher before it is sent to the journal.
MAILBOX_SIZE = 64

News = tuple[Task, tuple[JournalChunk, ...]]


class Watcher:
    """The mailbox of one reader of one task."""

    def __init__(self, task_id: str) -> None:
        self.task_id = task_id
        #: Whether the mailbox is no continuation of what the reader has: the journal must be read.
        self.is_behind = True
        self._mailbox: deque[News] = deque()
        self._has_news = asyncio.Event()

    def tell(self, task: Task, chunks: tuple[JournalChunk, ...]) -> None:
        """Put news into the mailbox; never blocks."""
        if len(self._mailbox) >= MAILBOX_SIZE:
            self.fall_behind()
        if not self.is_behind:
            self._mailbox.append((task, chunks))
        self._has_news.set()

    def fall_behind(self) -> None:
        """Forget the mailbox; the journal has it all."""
        self.is_behind = True
        self._mailbox.clear()
        self._has_news.set()

    def catch_up(self) -> None:
        """Collect news from now on. To be called before the journal is read: what happens in
        between is then in both, which a reader can tell, and never in neither."""
        self.is_behind = False
        self._mailbox.clear()

    async def next(self) -> News | None:
        """The next news, in order; None when the watcher has fallen behind."""
        while not self._mailbox and not self.is_behind:
            self._has_news.clear()
            await self._has_news.wait()
        return None if self.is_behind else self._mailbox.popleft()


class Watchers:
    """Every watcher of this process, by task."""

    def __init__(self) -> None:
        self._by_task: dict[str, set[Watcher]] = {}

    def attach(self, task_id: str) -> Watcher:
        watcher = Watcher(task_id)
        self._by_task.setdefault(task_id, set()).add(watcher)
        return watcher

    def detach(self, watcher: Watcher) -> None:
        remaining = self._by_task[watcher.task_id]
        remaining.discard(watcher)
        if not remaining:
            del self._by_task[watcher.task_id]

    def tell(self, task: Task, chunks: tuple[JournalChunk, ...]) -> None:
        for watcher in self._by_task.get(task.id, ()):
            watcher.tell(task, chunks)

    def doubt(self, task_id: str | None = None) -> None:
        """Something may have happened to a task, or to any: let its watchers read the journal."""
        doubted = self._by_task.values() if task_id is None else [self._by_task.get(task_id, set())]
        for watchers in doubted:
            for watcher in watchers:
                watcher.fall_behind()

    def __repr__(self) -> str:
        num_watchers = sum(map(len, self._by_task.values()))
        return f"<Watchers tasks={len(self._by_task)} watchers={num_watchers}>"
