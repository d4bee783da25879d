"""How many tasks a second the book takes through claim, append and finish, on this machine's disk.

    python benchmarks/task_book.py [--tasks 2000] [--callers 1 16 100] [--folder .]

Each cycle is three commands, each on disk before it is answered. Callers run at once and share
commits. The numbers depend on the disk: the file is made in a new folder under --folder.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from scheduler.clock import SystemClock
from scheduler.stores.sqlite import Store
from scheduler.task_book import TaskBook
from scheduler.testing.tasks import MODEL, chunk, submission


async def cycles(book: TaskBook, count: int) -> None:
    """Claim a task, append one chunk, finish it."""
    for _ in range(count):
        (grant,) = await book.claim(MODEL, runner="bench", replica="demo__r0")
        task = grant.task
        await book.append(task.id, task.fence, [chunk(0)])
        await book.succeed(task.id, task.fence, {"reason": "eos"})


async def measure(path: Path, num_tasks: int, num_callers: int) -> str:
    store = Store(path)
    book = TaskBook(store, SystemClock(), lease_ttl_s=60)
    each = max(1, num_tasks // num_callers)

    async def submit(count: int, tenant: str) -> None:
        for _ in range(count):
            await book.submit(submission(tenant))

    started = time.perf_counter()
    await asyncio.gather(*(submit(each, f"tenant-{n % 10}") for n in range(num_callers)))
    accepted = time.perf_counter()
    before = store.num_commits
    await asyncio.gather(*(cycles(book, each) for _ in range(num_callers)))
    finished = time.perf_counter()
    total, commits = each * num_callers, store.num_commits - before
    await store.close()
    return (
        f"{num_callers:4} callers: {total / (accepted - started):7.0f} submissions/s, "
        f"{total / (finished - accepted):7.0f} cycles/s, {3 * total / commits:5.1f} moves a commit"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=2000)
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 16, 100])
    parser.add_argument("--folder", type=Path, default=Path())
    given = parser.parse_args()
    for num_callers in given.callers:
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            line = asyncio.run(measure(Path(folder) / "bench.db", given.tasks, num_callers))
            sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
