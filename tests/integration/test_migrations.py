"""What older Plaits wrote goes on: files of every schema there was, as those versions left them."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
import pytest_asyncio

from scheduler.clock import ManualClock
from scheduler.errors import StartupError
from scheduler.stores import _migrations
from scheduler.stores.sqlite import Store
from scheduler.task import TaskState
from scheduler.task_book import TaskBook
from scheduler.testing.tasks import MODEL, chunk, problems

#: When the old Plait stopped, as its file has it.
STOPPED_AT = 1_700_000_040.0
#: Tasks of the file by what became of them.
DONE, BAD, DEAD, GONE, LATE, AGAIN, RUNNING, LOST, FIRST, SECOND, LAST = (
    f"01HF00000000000000000000{number:02}" for number in range(11)
)


@pytest.fixture(params=[1, 2])
def path(request: pytest.FixtureRequest, root: Path, tmp_path: Path) -> Path:
    """A store as the Plait of a schema wrote it."""
    script = (root / "tests" / "data" / f"sqlite-store-{request.param}.sql").read_text()
    path = tmp_path / "plait.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)
        assert connection.execute("PRAGMA user_version").fetchone() == (request.param,)
    return path


@pytest_asyncio.fixture
async def store(path: Path) -> AsyncIterator[Store]:
    opened = Store(path)
    yield opened
    await opened.close()


@pytest.fixture
def book(store: Store) -> TaskBook:
    return TaskBook(store, ManualClock(STOPPED_AT), lease_ttl_s=10, max_attempts=5)


async def test_everything_adds_up_in_an_old_store(store: Store) -> None:
    assert await store.read(problems) == []


async def test_every_task_is_there_and_stands_as_it_stood(book: TaskBook) -> None:
    tasks = {task.id: task for task in await book.tasks()}

    assert {key: task.state.value for key, task in tasks.items()} == {
        DONE: "succeeded",
        BAD: "failed",
        DEAD: "failed",
        GONE: "cancelled",
        LATE: "expired",
        AGAIN: "leased",
        RUNNING: "leased",
        LOST: "queued",
        FIRST: "queued",
        SECOND: "queued",
        LAST: "queued",
    }
    assert tasks[DONE].result == {"reason": "eos"}
    assert tasks[BAD].error is not None
    assert tasks[BAD].error.field == "prompt"
    assert tasks[SECOND].idempotency_key == "k2"
    assert tasks[SECOND].deadline_at is not None
    assert {task.priority_class for task in tasks.values()} == {"standard"}
    assert tasks[FIRST].document == {"prompt": "def", "max_new_tokens": 10}


async def test_output_and_attempts_are_kept(book: TaskBook) -> None:
    assert [c.token_ids for c in await book.chunks(AGAIN)] == [(100,), (101,), (102,)]
    assert [(a.number, a.outcome) for a in await book.attempts(AGAIN)] == [
        (1, "lost"),
        (2, "running"),
    ]
    assert [a.reason for a in await book.attempts(DEAD)] == ["machine 0 died", "machine 1 died"]


async def test_a_lease_that_was_running_goes_on_and_settles(book: TaskBook, store: Store) -> None:
    await book.append(AGAIN, 2, [chunk(3)])
    task = await book.succeed(AGAIN, 2, {})

    assert task.state is TaskState.SUCCEEDED
    assert task.charged_cost == 5 + 2 * 4
    assert await store.read(problems) == []


async def test_a_lease_that_was_running_may_be_lost_and_is_taken_up_again(
    book: TaskBook, store: Store
) -> None:
    await book.release(RUNNING, 1, "machine died")

    grants = await book.claim(MODEL, runner="r2", replica="x", limit=99)

    (grant,) = (grant for grant in grants if grant.task.id == RUNNING)
    assert (grant.task.fence, grant.generated) == (2, ((100,),))
    assert await store.read(problems) == []


async def test_what_was_queued_is_claimed_in_order_within_each_flow(
    book: TaskBook, store: Store
) -> None:
    grants = await book.claim(MODEL, runner="r2", replica="x", limit=99)

    claimed = [grant.task.id for grant in grants]
    assert sorted(claimed) == sorted([LOST, FIRST, SECOND, LAST])
    assert claimed.index(LOST) < claimed.index(SECOND)
    assert claimed.index(FIRST) < claimed.index(LAST)
    assert await store.read(problems) == []


async def test_what_operators_had_set_holds(store: Store) -> None:
    ann = await store.read(lambda tx: tx.tenant("ann"))

    assert (ann.weight_permille, ann.max_queued) == (3000, None)
    assert await store.read(lambda tx: tx.desired_replicas()) == {MODEL: 2}


async def test_a_store_is_brought_up_to_date_once(path: Path) -> None:
    for _ in range(2):
        await Store(path).close()

    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute(_migrations.VERSION_QUERY).fetchall() == [(_migrations.HEAD,)]


async def test_a_step_that_fails_is_undone_and_may_be_run_again(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        # In the way of the third step, long after its beginning.
        connection.execute("CREATE TABLE bulks (id TEXT)")

    with pytest.raises(StartupError, match=r"up to date: .*bulks already exists"):
        Store(path)

    with closing(sqlite3.connect(path)) as connection:
        columns = {row[1] for row in connection.execute("PRAGMA table_info(tasks)")}
        assert "resume" in columns
        assert "priority_class" not in columns
        connection.execute("DROP TABLE bulks")
    store = Store(path)
    assert await store.read(problems) == []
    await store.close()


@pytest.mark.parametrize("version", ["9999", "beyond"])
async def test_the_schema_of_a_newer_plait_is_refused(path: Path, version: str) -> None:
    await Store(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (version,))
        connection.commit()

    with pytest.raises(StartupError, match=f"has schema {version}, this Plait knows up to"):
        Store(path)


def test_the_newest_version_is_that_of_the_newest_file() -> None:
    folder = Path(_migrations.__file__).parent / "versions"

    assert max(path.name[1:5] for path in folder.glob("v*.py")) == _migrations.HEAD
