"""Several control planes on one PostgreSQL, and connections and a server that fail them."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from functools import partial

import psycopg
import pytest

from scheduler.errors import StaleLease, StoreUnavailable
from scheduler.records import changed
from scheduler.stores._postgres_wire import Wire
from scheduler.stores.base import Transaction
from scheduler.stores.postgres import Store
from scheduler.task import TaskState
from scheduler.task_book import TaskBook
from scheduler.testing.tasks import MODEL, chunk, problems, submission
from tests.integration.postgres_books import add_one, book_on, weight
from tests.postgres_server import Server
from tests.waiting import insist as insist_despite
from tests.waiting import until

#: Clients and runners ask again as long as a store does not answer.
insist = partial(insist_despite, despite=StoreUnavailable)

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
