"""The SQLite store on a real disk: kill -9, a second process, full disks, group commit."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from scheduler.clock import SystemClock
from scheduler.errors import StartupError, StoreUnavailable
from scheduler.flow import Tenant
from scheduler.records import changed
from scheduler.stores import _flows_sql, _tasks_sql, sqlite
from scheduler.stores.base import Transaction
from scheduler.stores.sqlite import Store, connect, refuse_damaged
from scheduler.task_book import TaskBook
from scheduler.testing.tasks import MODEL, problems, submission

#: Works in a loop and says on standard output what it was answered, as soon as it was.
WRITER = """
import asyncio, sys
from scheduler.clock import SystemClock
from scheduler.stores.sqlite import Store, connect, refuse_damaged
from scheduler.task_book import TaskBook
from scheduler.testing.tasks import MODEL, chunk, submission

def say(*words):
    print(*words, flush=True)

async def work(book, name):
    while True:
        task, _ = await book.submit(submission(name))
        say("accepted", task.id)
        for grant in await book.claim(MODEL, runner=name, replica="demo__r0"):
            task = grant.task
            for seq in range(task.num_chunks, task.num_chunks + 3):
                await book.append(task.id, task.fence, [chunk(seq)])
                say("chunk", task.id, seq)
            await book.succeed(task.id, task.fence, {"n": 3})
            say("finished", task.id)

async def main():
    book = TaskBook(Store(sys.argv[1]), SystemClock(), lease_ttl_s=60)
    await asyncio.gather(*(work(book, f"tenant-{n}") for n in range(8)))

asyncio.run(main())
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "plait.db"


@pytest_asyncio.fixture
async def store(path: Path) -> AsyncIterator[Store]:
    opened = Store(path)
    yield opened
    await opened.close()


@contextmanager
def writer(path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", WRITER, str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def acknowledged_before_death(path: Path, num_lines: int) -> list[list[str]]:
    """Let a writer work until it has said enough, kill it, and return all that it said."""
    with writer(path) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(num_lines)]
        os.kill(process.pid, signal.SIGKILL)
        said += process.stdout.readlines()
    # The last line may be cut off; what it would have said is then not acknowledged.
    return [line.split() for line in said if line.endswith("\n")]


async def test_nothing_acknowledged_is_lost_when_the_process_is_killed(path: Path) -> None:
    said: list[list[str]] = []
    for num_lines in (40, 400, 150):
        said += acknowledged_before_death(path, num_lines)

    store = Store(path)
    book = TaskBook(store, SystemClock(), lease_ttl_s=60)
    for what, task_id, *seq in said:
        task = await book.task(task_id)
        assert what != "finished" or task.result == {"n": 3}
        assert what != "chunk" or task.num_chunks > int(seq[0])
    assert await store.read(problems) == []
    await store.close()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_second_process_is_refused_with_the_pid_of_the_first(path: Path) -> None:
    with writer(path) as process:
        assert process.stdout is not None
        process.stdout.readline()

        with pytest.raises(StartupError, match=rf"is open in process {process.pid}: stop it"):
            Store(path)


async def test_a_closed_store_can_be_opened_again(path: Path) -> None:
    first = Store(path)
    await first.run(lambda tx: tx.put_tenant(Tenant("ann", weight_permille=2000)))
    await first.close()

    second = Store(path)
    assert await second.read(lambda tx: tx.tenants()) == [Tenant("ann", weight_permille=2000)]
    await second.close()


async def test_a_read_does_not_wait_for_the_writer(store: Store) -> None:
    is_running, may_go_on = threading.Event(), threading.Event()

    def slow(tx: Transaction) -> None:
        tx.put_tenant(Tenant("ann", weight_permille=7))
        is_running.set()
        assert may_go_on.wait(10)

    command = asyncio.ensure_future(store.run(slow))
    await asyncio.to_thread(is_running.wait, 10)

    assert await store.read(_weight) == 1000
    may_go_on.set()
    await command


async def test_a_query_cannot_write(store: Store) -> None:
    with pytest.raises(StoreUnavailable, match="readonly"):
        await store.read(lambda tx: tx.put_tenant(Tenant("ann")))


async def test_a_full_disk_refuses_and_the_store_serves_on(store: Store) -> None:
    (pages,) = store._writer.execute("PRAGMA page_count").fetchone()
    store._writer.execute(f"PRAGMA max_page_count = {pages}")
    long = submission(document={"prompt": "x" * 1_000_000})
    book = TaskBook(store, SystemClock(), lease_ttl_s=60)

    with pytest.raises(StoreUnavailable, match="full"):
        await book.submit(long)
    store._writer.execute("PRAGMA max_page_count = 1000000")

    accepted, _ = await book.submit(long)
    assert await book.depth() == {MODEL: 1}
    assert (await book.task(accepted.id)).document == long.document


async def test_a_full_disk_is_not_the_fault_of_commands_beside_it(store: Store) -> None:
    (pages,) = store._writer.execute("PRAGMA page_count").fetchone()
    store._writer.execute(f"PRAGMA max_page_count = {pages}")
    long = submission(document={"prompt": "x" * 1_000_000})
    book = TaskBook(store, SystemClock(), lease_ttl_s=60)

    answers = await asyncio.gather(
        store.run(_add_one), book.submit(long), store.run(_add_one), return_exceptions=True
    )

    # A neighbour may be refused with it, but not half done, and an answer is the truth.
    assert isinstance(answers[1], StoreUnavailable)
    num_done = sum(answer is None for answer in answers)
    assert await store.read(_weight) == 1000 + num_done


async def test_a_foreign_lock_refuses_and_the_store_serves_on(path: Path) -> None:
    store = Store(path)
    store._writer.execute("PRAGMA busy_timeout = 10")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="locked"):
            await store.run(_add_one)
        other.execute("ROLLBACK")

    await store.run(_add_one)
    assert await store.read(_weight) == 1001
    await store.close()


@pytest.mark.parametrize("ending", [SystemExit, KeyboardInterrupt, StopIteration])
async def test_a_command_that_would_end_the_loop_is_a_bug_its_caller_hears_of(
    store: Store, ending: type[BaseException]
) -> None:
    def end(tx: Transaction) -> None:
        raise ending

    with pytest.raises(RuntimeError, match=f"a command raised {ending.__name__}"):
        await store.run(end)
    await store.run(_add_one)


def test_a_file_that_is_no_database_is_refused_and_not_locked(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("these are not the pages you are looking for" * 100)

    for _ in range(2):
        with pytest.raises(StartupError, match=r"cannot open the store .*not a database"):
            Store(path)


def damage_last_page(path: Path) -> None:
    """It is a leaf of what was written last; its cells lie anywhere afterwards."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as file:
        file.seek(path.stat().st_size - 4096 + 8)
        file.write(b"\xff" * 64)


async def test_a_file_with_a_damaged_page_is_refused(path: Path) -> None:
    store = Store(path)
    await store.run(lambda tx: [tx.put_class(f"class-{n}", 1 + n) for n in range(2000)])
    await store.close()
    damage_last_page(path)

    with pytest.raises(StartupError, match=r"plait\.db is damaged: .*; restore a backup of it"):
        Store(path)


async def test_a_look_for_damage_does_not_hold_up_the_start(path: Path) -> None:
    store = Store(path)
    await store.run(lambda tx: [tx.put_class(f"class-{n}", 1 + n) for n in range(20_000)])
    await store.close()
    with closing(connect(str(path))) as connection:
        began = time.monotonic()
        refuse_damaged(connection, str(path), most_s=0.0)
        assert time.monotonic() - began < 1.0
        assert connection.execute("SELECT COUNT(*) FROM classes").fetchone() == (20_000,)


async def test_a_file_of_a_newer_plait_is_refused(path: Path) -> None:
    await Store(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()

    with pytest.raises(StartupError, match="has schema 9999, this Plait knows up to"):
        Store(path)


async def test_commits_are_flushed_and_journalled(store: Store) -> None:
    settings = [
        store._writer.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous")
    ]

    assert settings == ["wal", 2]  # 2 is FULL


@pytest.mark.parametrize(
    "text",
    [
        _tasks_sql._HEADS,
        _tasks_sql._PAST_DEADLINE,
        _tasks_sql._EXPIRED_LEASES,
        _tasks_sql._DUE,
        _flows_sql._NEXT_FLOWS,
    ],
)
def test_what_every_decision_asks_is_answered_by_an_index(text: str) -> None:
    with closing(sqlite.connect(sqlite.MEMORY)) as connection:
        plan = connection.execute(f"EXPLAIN QUERY PLAN {text}", (1,) * text.count("?")).fetchall()

    steps = [step for *_, step in plan]
    assert len(steps) == 1
    assert re.match(r"SEARCH \w+ USING (COVERING )?INDEX", steps[0])


def _add_one(tx: Transaction) -> None:
    ann = tx.tenant("ann")
    tx.put_tenant(changed(ann, weight_permille=ann.weight_permille + 1))


def _weight(tx: Transaction) -> int:
    return tx.tenant("ann").weight_permille


@contextmanager
def a_disk_that_refuses_to_write() -> Iterator[None]:
    """Every write of this process to a file fails, as on a broken disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_commit_that_the_disk_refuses_leaves_nothing_in_memory(store: Store) -> None:
    book = TaskBook(store, SystemClock(), lease_ttl_s=60)
    await book.submit(submission("ann"))

    # SQLite ends the transaction by itself here: nothing is left to roll back.
    with a_disk_that_refuses_to_write(), pytest.raises(StoreUnavailable):
        await book.submit(submission("ann"))
    with a_disk_that_refuses_to_write(), pytest.raises(StoreUnavailable):
        await book.claim(MODEL, runner="r", replica="demo__r0")

    await book.submit(submission("ann"))
    assert await store.run(problems) == []
    grants = await book.claim(MODEL, runner="r", replica="demo__r0", limit=10)
    assert [grant.task.attempt for grant in grants] == [1, 1]
