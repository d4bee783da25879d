"""The PostgreSQL store on a real server: rivals, lost connections, a server that stops."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import pytest
import pytest_asyncio

from scheduler import control_plane
from scheduler.clock import SystemClock
from scheduler.errors import StaleLease, StartupError, StoreUnavailable
from scheduler.records import changed
from scheduler.settings import load
from scheduler.stores import _flows_sql, _postgres_writer, _tasks_sql
from scheduler.stores._postgres_link import connect, name_of
from scheduler.stores._postgres_wire import Wire
from scheduler.stores.base import Transaction
from scheduler.stores.postgres import Store
from scheduler.task import TaskState
from scheduler.task_book import TaskBook
from scheduler.testing.tasks import MODEL, chunk, problems, submission
from tests.postgres_server import Server
from tests.waiting import until

T = TypeVar("T")


def book_on(store: Store) -> TaskBook:
    return TaskBook(store, SystemClock(), lease_ttl_s=60)


@pytest_asyncio.fixture
async def store(postgres_url: str) -> AsyncIterator[Store]:
    opened = Store(postgres_url)
    yield opened
    await opened.close()


@pytest_asyncio.fixture
async def rival(postgres_url: str) -> AsyncIterator[Store]:
    """A second control plane's store on the same database."""
    opened = Store(postgres_url)
    yield opened
    await opened.close()


async def insist(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask until there is an answer, as clients and runners do."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await ask()
            except StoreUnavailable:
                await asyncio.sleep(0.02)


def add_one(tx: Transaction) -> None:
    ann = tx.tenant("ann")
    tx.put_tenant(changed(ann, weight_permille=ann.weight_permille + 1))


def weight(tx: Transaction) -> int:
    return tx.tenant("ann").weight_permille


# -- several control planes


@dataclass
class Log:
    """What clients and runners were answered."""

    granted: Counter[tuple[str, int]] = field(default_factory=Counter)
    accepted: set[str] = field(default_factory=set)
    succeeded: Counter[str] = field(default_factory=Counter)


async def live(book: TaskBook, name: str, log: Log, num_rounds: int, seed: int) -> None:
    """A client and a runner: submit, claim, write, and finish, give up or take back."""
    rng = random.Random(seed)
    for number in range(num_rounds):
        asked = submission(
            f"tenant-{rng.randrange(4)}",
            priority_class=rng.choice(["interactive", "batch"]),
            idempotency_key=f"{name}-{number}",
        )
        task, _ = await insist(lambda asked=asked: book.submit(asked))
        log.accepted.add(task.id)
        grants = await insist(lambda: book.claim(MODEL, runner=name, replica="x", limit=2))
        for grant in grants:
            log.granted[grant.task.id, grant.task.fence] += 1
            await work(book, grant.task.id, grant.task.fence, grant.task.num_chunks, log, rng)


async def work(
    book: TaskBook, task_id: str, fence: int, seq: int, log: Log, rng: random.Random
) -> None:
    try:
        await insist(lambda: book.append(task_id, fence, [chunk(seq)]))
        match rng.randrange(4):
            case 0:
                await insist(lambda: book.release(task_id, fence, "tired"))
            case 1:
                await insist(lambda: book.cancel(task_id))
            case _:
                await insist(lambda: book.succeed(task_id, fence, {}))
                log.succeeded[task_id] += 1
    except StaleLease:
        pass  # another took it back


async def hammer(stores: list[Store], num_rounds: int) -> Log:
    log = Log()
    async with asyncio.TaskGroup() as group:
        for number, each in enumerate(stores * 4):
            group.create_task(live(book_on(each), f"runner-{number}", log, num_rounds, number))
    return log


async def check(store: Store, log: Log) -> None:
    assert await insist(lambda: store.read(problems)) == []
    assert [key for key, count in log.granted.items() if count > 1] == []
    found = await store.read(lambda tx: tx.tasks(limit=10_000))
    assert {task.id for task in found} == log.accepted
    ended = {task.id for task in found if task.state is TaskState.SUCCEEDED}
    assert ended == set(log.succeeded)


async def test_control_planes_that_work_at_once_lose_nothing(store: Store, rival: Store) -> None:
    log = await hammer([store, rival], num_rounds=25)

    assert len(log.accepted) == 200
    assert len(log.succeeded) > 50
    await check(store, log)


async def test_claims_are_as_fair_across_control_planes_as_in_one(
    store: Store, rival: Store
) -> None:
    here, there = book_on(store), book_on(rival)
    for tenant in ("ann", "bob", "eve"):
        await asyncio.gather(*(here.submit(submission(tenant)) for _ in range(30)))
    served: Counter[str] = Counter()

    async def claim(book: TaskBook) -> None:
        for _ in range(15):
            (grant,) = await book.claim(MODEL, runner="r", replica="x")
            served[grant.task.tenant] += 1

    await asyncio.gather(claim(here), claim(there), claim(there), claim(here))

    assert served == {"ann": 20, "bob": 20, "eve": 20}


async def test_a_quota_holds_across_control_planes(store: Store, rival: Store) -> None:
    def limit(tx: Transaction) -> None:
        tx.put_tenant(changed(tx.tenant("ann"), max_queued=7))

    await store.run(limit)
    here, there = book_on(store), book_on(rival)

    answers = await asyncio.gather(
        *(book.submit(submission()) for book in [here, there] * 10), return_exceptions=True
    )

    assert sum(isinstance(answer, tuple) for answer in answers) == 7
    assert await here.depth() == {MODEL: 7}


async def test_updates_of_two_control_planes_are_all_counted(store: Store, rival: Store) -> None:
    await asyncio.gather(*(each.run(add_one) for each in [store, rival] * 100))

    assert await store.read(weight) == await rival.read(weight) == 1200


async def test_what_one_remembers_is_not_trusted_after_another_has_written(
    store: Store, rival: Store
) -> None:
    here, there = book_on(store), book_on(rival)
    first, _ = await here.submit(submission("ann"))
    second, _ = await here.submit(submission("ann"))
    await there.cancel(first.id)
    urgent, _ = await there.submit(submission("ann", priority=5))

    claimed = [(await here.claim(MODEL, runner="r", replica="x"))[0].task.id for _ in range(2)]

    assert claimed == [urgent.id, second.id]
    assert await here.claim(MODEL, runner="r", replica="x") == []


async def test_control_planes_that_start_at_once_make_one_schema(postgres: Server) -> None:
    with postgres.database(is_empty=True) as url:
        opened = await asyncio.gather(*(asyncio.to_thread(Store, url) for _ in range(4)))

        await asyncio.gather(*(each.run(add_one) for each in opened))

        assert await opened[0].read(weight) == 1004
        for each in opened:
            await each.close()


# -- lost connections


async def test_a_connection_that_broke_while_idle_is_made_again_unnoticed(
    store: Store, postgres: Server, postgres_url: str
) -> None:
    await store.run(add_one)
    await store.read(weight)

    assert postgres.end_sessions(postgres_url) >= 2

    await store.run(add_one)
    assert await store.read(weight) == 1002


async def test_a_batch_whose_connection_broke_is_run_again(
    store: Store, postgres: Server, postgres_url: str
) -> None:
    num_runs = 0

    def breaks(tx: Transaction) -> None:
        nonlocal num_runs
        num_runs += 1
        add_one(tx)
        if num_runs == 1:
            postgres.end_sessions(postgres_url)
        tx.depth()

    await asyncio.gather(store.run(add_one), store.run(breaks), store.run(add_one))

    assert num_runs == 2
    assert await store.read(weight) == 1003


async def test_nothing_is_lost_when_connections_break_all_the_time(
    store: Store, rival: Store, postgres: Server, postgres_url: str
) -> None:
    hammering = asyncio.create_task(hammer([store, rival], num_rounds=10))
    num_ended = 0

    async def end_sessions() -> bool:
        nonlocal num_ended
        num_ended += await asyncio.to_thread(postgres.end_sessions, postgres_url)
        return hammering.done()

    await until(end_sessions, timeout_s=120, every_s=0.05)

    assert num_ended > 5
    log = await hammering
    assert await insist(lambda: store.read(problems)) == []
    assert [key for key, count in log.granted.items() if count > 1] == []
    found = {t.id: t for t in await insist(lambda: store.read(lambda tx: tx.tasks(limit=9999)))}
    assert set(found) == log.accepted
    assert all(found[task_id].state is TaskState.SUCCEEDED for task_id in log.succeeded)


async def test_a_server_that_stops_refuses_and_serves_on_when_it_is_back(
    store: Store, postgres: Server
) -> None:
    book = book_on(store)
    task, _ = await book.submit(submission())
    postgres.stop()
    try:
        with pytest.raises(StoreUnavailable, match="cannot be reached"):
            await book.submit(submission())
        with pytest.raises(StoreUnavailable, match="cannot be reached"):
            await book.task(task.id)
    finally:
        postgres.start()

    await insist(lambda: book.submit(submission()))
    assert await insist(book.depth) == {MODEL: 2}
    assert await store.read(problems) == []


async def test_a_commit_whose_answer_got_lost_is_in_doubt(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.run(add_one)
    sync = Wire.sync

    def lost(wire: Wire) -> None:
        sync(wire)
        wire.close()
        raise psycopg.OperationalError("the cable was pulled")

    monkeypatch.setattr(Wire, "sync", lost)
    with pytest.raises(StoreUnavailable, match="the cable was pulled"):
        await store.run(add_one)
    monkeypatch.undo()

    # It was written, and not a second time.
    assert await store.read(weight) == 1002


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
