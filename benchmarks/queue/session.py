"""One contender, from the start of its server to the end of its last process."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.queue import roster
from benchmarks.queue.contenders.base import Job, Setup
from benchmarks.queue.host import SUBMIT, WORK, Host
from benchmarks.queue.ledger import Ledger
from benchmarks.queue.roster import Entry


class Session:
    """A context manager; everything that was started is gone at the end, however it ends."""

    def __init__(self, entry: Entry, cache: Path, num_rows: int) -> None:
        self.entry = entry
        self._folder = cache.absolute() / entry.key
        self._num_rows = num_rows
        self._stack = ExitStack()
        self._worker: Host | None = None

    def __enter__(self) -> Session:
        # The folder stays until the next time, for its logs.
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        self.ledger = Ledger.create(self._folder / "ledger", self._num_rows)
        try:
            serve = roster.module(self.entry.name).serve(self._folder)
            address = self._stack.enter_context(serve)
            self._setup = Setup(address, str(self._folder), self.entry.slots, str(self.ledger.path))
            self._submitter = Host(self.entry.name, SUBMIT, self._setup)
            self._stack.callback(self._submitter.close)
            self._submitter.wait_ready()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._worker is not None:
                self._worker.close()
        finally:
            self._stack.close()

    def submit(self, jobs: Sequence[Job], within_s: float, pace_s: float = 0.0) -> float:
        """One after the other; the seconds that took. Raises ContenderFailed."""
        return self._submitter.order("submit", jobs, within_s, pace_s)

    def submit_together(self, jobs: Sequence[Job], within_s: float) -> float:
        """Many at once; the seconds that took. Raises ContenderFailed."""
        return self._submitter.order("submit_together", jobs, within_s)

    def start_work(self) -> None:
        """Have a worker begin. Raises ContenderFailed."""
        if self.entry.facts.is_embedded:
            self._submitter.order("work", [], within_s=10.0)
            return
        self._worker = Host(self.entry.name, WORK, self._setup)
        self._worker.wait_ready()

    def kill_worker(self) -> None:
        """``kill -9`` of the worker and all it has started."""
        assert self._worker is not None
        self._worker.kill()
        self._worker = None
