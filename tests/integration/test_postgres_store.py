"""The PostgreSQL store on a real server: commands that go wrong, and how it is opened."""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path
from typing import Any

import psycopg
import pytest

from scheduler import control_plane
from scheduler.errors import StartupError, StoreUnavailable
from scheduler.records import changed
from scheduler.settings import load
from scheduler.stores import _flows_sql, _postgres_writer, _tasks_sql
from scheduler.stores._postgres_link import connect, name_of
from scheduler.stores.base import Transaction
from scheduler.stores.postgres import Store
from scheduler.task import TaskState
from scheduler.testing.tasks import MODEL, chunk, problems, submission
from tests.integration.postgres_books import add_one, book_on, weight
from tests.postgres_server import Server

# -- commands that go wrong


async def test_an_error_of_the_database_is_its_command_s_alone(store: Store) -> None:
    book = book_on(store)
    task, _ = await book.submit(submission())

    def twice(tx: Transaction) -> None:
        tx.add_chunks(task.id, [chunk(0)])
        tx.add_chunks(task.id, [chunk(0)])

    answers = await asyncio.gather(
        store.run(add_one),
        store.run(twice),
        store.run(add_one),
        book.submit(submission()),
        return_exceptions=True,
    )

    assert isinstance(answers[1], psycopg.errors.UniqueViolation)
    assert [type(answer) for answer in answers[::2]] == [type(None)] * 2
    assert await store.read(weight) == 1002
    assert await book.depth() == {MODEL: 2}
    assert await store.read(problems) == []


async def test_a_command_that_fails_half_way_leaves_flows_as_they_were(store: Store) -> None:
    book = book_on(store)
    await book.submit(submission())

    def half(tx: Transaction) -> None:
        grants = book.rules.queue.head(tx, MODEL)
        assert grants is not None
        tx.put_task(changed(grants, state=TaskState.CANCELLED))
        flow = tx.flow(MODEL, grants.priority_class, grants.tenant)
        tx.put_flow(changed(flow, num_queued=0))
        raise LookupError("half way")

    answers = await asyncio.gather(
        book.submit(submission()),
        store.run(half),
        book.submit(submission("bob")),
        return_exceptions=True,
    )

    assert isinstance(answers[1], LookupError)
    assert await store.read(problems) == []
    granted = await book.claim(MODEL, runner="r", replica="x", limit=9)
    assert len(granted) == 3


@pytest.mark.parametrize("ending", [SystemExit, KeyboardInterrupt, StopIteration])
async def test_a_command_that_would_end_the_loop_is_a_bug_its_caller_hears_of(
    store: Store, ending: type[BaseException]
) -> None:
    def end(tx: Transaction) -> None:
        raise ending

    with pytest.raises(RuntimeError, match=f"a command raised {ending.__name__}"):
        await store.run(end)
    await store.run(add_one)


async def test_a_query_cannot_write(store: Store) -> None:
    with pytest.raises(StoreUnavailable, match="readonly"):
        await store.read(add_one)
    assert await store.read(weight) == 1000


async def test_a_read_does_not_wait_for_the_writer(store: Store) -> None:
    is_running, may_go_on = threading.Event(), threading.Event()

    def slow(tx: Transaction) -> None:
        add_one(tx)
        is_running.set()
        assert may_go_on.wait(10)

    command = asyncio.ensure_future(store.run(slow))
    await asyncio.to_thread(is_running.wait, 10)

    assert await store.read(weight) == 1000
    may_go_on.set()
    await command


async def test_a_control_plane_that_holds_the_lock_too_long_makes_others_refuse(
    store: Store, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.run(add_one)
    wire = store._writer._open().wire
    wire.fetch("SELECT set_config('lock_timeout', '50ms', false)")
    wire.sync()
    with psycopg.connect(postgres_url) as other:
        other.execute("SELECT pg_advisory_xact_lock(%s)", [_postgres_writer.LOCK_ID])
        with pytest.raises(StoreUnavailable, match="lock timeout"):
            await store.run(add_one)

    await store.run(add_one)
    assert await store.read(weight) == 1002


# -- how it is opened


async def test_the_control_plane_opens_the_store_that_the_setting_names(
    postgres_url: str, tmp_path: Path
) -> None:
    shared = control_plane.open_store(load({"store": postgres_url}))
    own = control_plane.open_store(load({"state": tmp_path}))

    assert (shared.is_shared, own.is_shared) == (True, False)
    assert (tmp_path / "plait.sqlite").exists()
    await shared.close()
    await own.close()


def test_a_missing_driver_is_named_with_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scheduler.stores.postgres", None)
    monkeypatch.delattr("scheduler.stores.postgres")

    with pytest.raises(StartupError, match=r"pip install 'plait\[postgres\]'"):
        control_plane.open_store(load({"store": "postgresql://db/plait"}))


def test_the_schema_of_a_newer_plait_is_refused(postgres: Server) -> None:
    with postgres.database() as url:
        name = psycopg.conninfo.conninfo_to_dict(url)["dbname"]
        postgres.execute("UPDATE alembic_version SET version_num = '9999'", database=str(name))

        with pytest.raises(StartupError, match="has schema 9999, this Plait knows up to"):
            Store(url)


def test_a_server_that_is_not_there_stops_start_up_without_telling_the_password() -> None:
    with pytest.raises(StartupError, match=r"cannot open the store postgresql://127") as caught:
        Store("postgresql://joe:secret@127.0.0.1:1/plait")

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["postgresql://joe:secret@[::1/plait", "postgresql://x/y?nosuch=secret"]
)
def test_a_url_that_cannot_be_understood_is_not_repeated(url: str) -> None:
    with pytest.raises(StartupError, match=r"no postgresql:// URL") as caught:
        Store(url)

    assert "secret" not in str(caught.value)


def test_a_database_is_named_without_who_may_open_it() -> None:
    assert name_of("postgresql://joe:secret@db.example/plait") == (
        "postgresql://db.example:5432/plait"
    )


async def test_commits_are_durable_where_the_server_would_not_wait(
    postgres: Server, postgres_url: str
) -> None:
    name = psycopg.conninfo.conninfo_to_dict(postgres_url)["dbname"]
    postgres.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    store = Store(postgres_url)

    wire = store._writer._open().wire
    assert wire.fetch("SHOW synchronous_commit") == [["on"]]
    await store.close()


def test_text_is_ordered_by_its_bytes_in_every_column(postgres: Server, postgres_url: str) -> None:
    name = psycopg.conninfo.conninfo_to_dict(postgres_url)["dbname"]
    others = postgres.execute(
        "SELECT table_name, column_name FROM information_schema.columns"
        " WHERE table_schema = 'public' AND table_name <> 'alembic_version'"
        " AND data_type = 'text' AND collation_name IS DISTINCT FROM 'C'",
        database=str(name),
    )

    assert others == []


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
def test_what_every_decision_asks_is_answered_by_an_index_in_order(
    text: str, postgres_url: str
) -> None:
    wire = connect(postgres_url)
    values: list[Any] = ["1"] * text.count("?")

    plan = "\n".join(row[0] for row in wire.fetch(f"EXPLAIN {text}", values))

    assert "Index" in plan
    assert "Seq Scan" not in plan
    assert "Sort" not in plan
    wire.close()
