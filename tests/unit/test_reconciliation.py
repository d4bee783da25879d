"""Each kind of drift is made to happen, is found by its check, put right, counted, and gone."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
import structlog

from scheduler.bulk_book import OPEN_FOR_S
from scheduler.drift import Finding
from scheduler.errors import StoreUnavailable
from scheduler.reconciliation.base import Check
from scheduler.reconciliation.checks import CHECKS
from scheduler.reconciliation.service import Reconciliation
from scheduler.task import TaskState
from scheduler.task_book import TaskBook
from scheduler.testing.tasks import MODEL
from tests.unit.drifting_store import TTL_S, Drifting, drifting, node

CHUNK = "INSERT INTO journal (task_id, seq, token_ids, text, answer)"


@pytest_asyncio.fixture
async def store() -> AsyncIterator[Drifting]:
    async with drifting() as opened:
        yield opened


async def repaired(store: Drifting, name: str, *problems: str) -> None:
    """One look finds what was damaged, and only that; the next finds nothing; both are counted."""
    before = store.tally(name)

    found = await store.found()

    assert [finding.problem for finding in found.pop(name, [])] == list(problems)
    assert found == {}
    assert await store.problems() == []
    assert await store.found() == {}
    after = store.tally(name)
    assert after.num_found - before.num_found == len(problems)
    assert after.num_repaired - before.num_repaired == len(problems)
    assert after.num_failed == 0


async def state_of(store: Drifting, task_id: str) -> TaskState:
    return (await store.book.task(task_id)).state


# -- what is over


async def test_a_lease_that_ran_out_is_taken_back(store: Drifting) -> None:
    task = await store.running(num_chunks=2)
    # Leases ran out although somebody looked all the time.
    for _ in range(11):
        store.advance(1.0)
        await store.reconciliation.look()

    assert store.tally("expired_leases").num_repaired == 1
    assert await state_of(store, task.id) is TaskState.QUEUED
    assert (await store.book.task(task.id)).num_chunks == 2
    await repaired(store, "expired_leases")


async def test_a_passed_deadline_ends_a_task(store: Drifting) -> None:
    task = await store.submit(deadline_at=store.clock.now() + 1)
    store.advance(1.0)

    await repaired(store, "deadlines_passed", "its deadline passed")
    assert await state_of(store, task.id) is TaskState.EXPIRED


async def test_a_task_whose_pause_is_over_is_queued(store: Drifting) -> None:
    task = await store.running()
    await store.book.release(task.id, 1, "worker died")
    await store.claim()
    await store.book.release(task.id, 2, "worker died")
    assert await state_of(store, task.id) is TaskState.DELAYED
    store.advance(1.0)

    await repaired(store, "pauses_over", "its pause is over")
    assert await state_of(store, task.id) is TaskState.QUEUED


async def test_a_pause_longer_than_any_is_over_at_once(store: Drifting) -> None:
    task = await store.running()
    await store.book.release(task.id, 1, "worker died")
    await store.claim()
    delayed = await store.book.release(task.id, 2, "worker died")
    assert delayed.not_before is not None
    await store.damage("UPDATE tasks SET not_before = not_before + 3600")

    found = await store.found()

    assert [each.problem for each in found["pauses_over"]] == ["its pause is over"]
    assert await state_of(store, task.id) is TaskState.QUEUED


async def test_what_ended_long_ago_is_removed() -> None:
    async with drifting(retention_s=100) as store:
        task = await store.submit()
        await store.book.cancel(task.id)
        store.advance(99)
        await store.found()
        assert len(await store.book.tasks()) == 1

        store.advance(2)
        await store.found()

        assert await store.book.tasks() == []


async def test_a_bulk_that_nobody_closed_is_cancelled(store: Drifting) -> None:
    bulk = await store.bulks.begin("ann", MODEL)
    store.advance(OPEN_FOR_S + 1)

    found = await store.found()

    assert [each.subject for each in found["bulks_left_open"]] == [f"bulk {bulk.id}"]
    assert await store.found() == {}
    ended = (await store.bulks.progress(bulk.id)).bulk
    assert ended.cancelled_at is not None


async def test_without_a_retention_everything_is_kept(store: Drifting) -> None:
    task = await store.submit()
    await store.book.cancel(task.id)
    store.advance(1e9)

    await store.found()

    assert len(await store.book.tasks()) == 1


# -- who works on what


async def test_a_lease_that_names_nobody_is_taken_back(store: Drifting) -> None:
    task = await store.running(num_chunks=1)
    await store.damage("UPDATE tasks SET runner = NULL, replica = NULL, lease_expires_at = NULL")

    await repaired(store, "tasks_held_by_nobody", "was leased to nobody")
    assert await state_of(store, task.id) is TaskState.QUEUED


async def test_a_claim_whose_answer_was_lost_is_taken_back_before_its_lease_ends(
    store: Drifting,
) -> None:
    store.cluster.shown = [node("r1")]
    task = await store.running()  # and the runner never hears of it
    store.advance(3)
    await store.found()
    assert await state_of(store, task.id) is TaskState.LEASED
    for _ in range(4):
        store.advance(1)
        await store.reconciliation.look()

    assert await state_of(store, task.id) is TaskState.QUEUED
    assert store.tally("tasks_held_by_nobody").num_repaired == 1
    assert store.tally("expired_leases").num_found == 0


async def test_a_lease_that_is_renewed_elsewhere_is_left_alone(store: Drifting) -> None:
    store.cluster.shown = [node("r1")]  # its stream here is half open; it beats elsewhere
    task = await store.running()
    for _ in range(30):
        store.advance(1)
        await store.book.renew("r1", [(task.id, 1)])
        await store.reconciliation.look()

    assert await state_of(store, task.id) is TaskState.LEASED


# -- rows that do not belong together


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("num_queued = 7", "num_queued was 7, is 1"),
        ("queued_cost = 0", "queued_cost was 0, is 25"),
        ("num_leased = 0", "num_leased was 0, is 1"),
        ("is_held = 1", "is_held was True, is False"),
    ],
)
async def test_a_flow_that_miscounts_is_counted_anew(
    store: Drifting, damage: str, problem: str
) -> None:
    await store.running()
    await store.submit()
    await store.damage(f"UPDATE flows SET {damage}")

    found = await store.found()

    (finding,) = found.pop("flows_that_miscount")
    assert problem in finding.problem
    assert found == {}
    assert await store.problems() == []
    assert await store.found() == {}


async def test_a_band_that_miscounts_is_counted_anew(store: Drifting) -> None:
    await store.submit()
    await store.damage("UPDATE bands SET num_active = 5")

    await repaired(store, "flows_that_miscount", "its band's num_active was 5, is 1")


async def test_a_flow_that_is_gone_is_made_again(store: Drifting) -> None:
    await store.submit()
    await store.damage("DELETE FROM flows")
    await store.damage("DELETE FROM bands")
    store.start()

    found = await store.found()

    assert list(found) == ["flows_that_miscount"]
    assert len(await store.claim()) == 1


async def test_a_task_whose_request_is_lost_is_cancelled_and_says_why(store: Drifting) -> None:
    task = await store.submit()
    await store.damage("DELETE FROM documents")

    await repaired(store, "tasks_without_request", "its request is lost")
    lost = await store.book.task(task.id)
    assert (lost.state, lost.error is not None) == (TaskState.CANCELLED, True)
    assert "its request was lost from the store" in str(lost.error)


@pytest.mark.parametrize(
    ("statement", "table", "name"),
    [
        ("INSERT INTO documents VALUES ('gone', '{}')", "documents", "results_without_task"),
        (
            "INSERT INTO attempts VALUES ('gone', 1, 1, 'r1', 'demo__r0', 0, 0, 1, 'lost', '')",
            "attempts",
            "results_without_task",
        ),
        (
            f"{CHUNK} VALUES ('gone', 0, '[]', '', 0)",
            "journal",
            "journals_without_owner",
        ),
    ],
)
async def test_what_is_left_of_a_task_that_is_gone_is_removed(
    store: Drifting, statement: str, table: str, name: str
) -> None:
    kept = await store.running(num_chunks=2)
    await store.damage(statement)

    await repaired(store, name, "there is no such task")
    assert len(await store.book.chunks(kept.id)) == 2
    assert not await store.store.read(lambda tx: [o for o in tx.owners(table, "", 9) if not o[1]])


@pytest.mark.parametrize(
    ("statement", "left", "problem"),
    [
        ("DELETE FROM journal WHERE seq = 2", 2, "only 2 of its 4 chunks are left"),
        ("DELETE FROM journal", 0, "only 0 of its 4 chunks are left"),
        ("DELETE FROM journal WHERE seq = 3", 3, "only 3 of its 4 chunks are left"),
    ],
)
async def test_a_task_whose_output_is_lost_goes_on_from_what_is_left(
    store: Drifting, statement: str, left: int, problem: str
) -> None:
    task = await store.running(num_chunks=4)
    await store.damage(statement)

    await repaired(store, "journals_without_chunks", problem)
    (grant,) = await store.claim()
    assert (grant.task.id, grant.task.num_chunks) == (task.id, left)
    assert sum(map(len, grant.generated)) == left


async def test_a_task_that_cannot_go_on_fails_when_its_output_is_lost(store: Drifting) -> None:
    task = await store.running(num_chunks=4, resume="none")
    await store.damage("DELETE FROM journal")

    await repaired(store, "journals_without_chunks", "only 0 of its 4 chunks are left")
    assert await state_of(store, task.id) is TaskState.FAILED


async def test_output_beyond_a_task_s_last_chunk_is_removed(store: Drifting) -> None:
    task = await store.running(num_chunks=1)
    await store.damage(f"{CHUNK} VALUES (?, 1, '[1]', 'x', 0)", task.id)

    await repaired(store, "journals_without_chunks", "had 1 chunks beyond its last")
    assert await store.book.append(task.id, 1, []) == 1


async def test_rows_are_gone_through_page_by_page(
    store: Drifting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scheduler.reconciliation.rows.TASKS_PAGE", 2)
    tasks = [await store.submit() for _ in range(5)]
    await store.damage("DELETE FROM documents WHERE task_id = ?", tasks[4].id)
    store.start()
    found = []
    for _ in range(3):
        found.append(await store.reconciliation.look())
        store.advance(10)

    assert [bool(look["tasks_without_request"]) for look in found] == [False, False, True]


# -- how they are run


async def test_what_cannot_be_put_right_is_counted_once_and_stays_open(store: Drifting) -> None:
    store.cluster.shown = [node(clock_skew_s=-90.0)]

    with structlog.testing.capture_logs() as logged:
        for _ in range(3):
            await store.found()

    tally = store.tally("clock_skew")
    assert (tally.num_found, tally.num_repaired) == (1, 0)
    assert [each.subject for each in tally.open] == ["runner r1"]
    assert [each["event"] for each in logged] == ["drift_found"]


async def test_every_repair_is_logged(store: Drifting) -> None:
    await store.submit(deadline_at=store.clock.now())

    with structlog.testing.capture_logs() as logged:
        await store.found()

    assert [(each["event"], each["check"]) for each in logged] == [
        ("drift_repaired", "deadlines_passed")
    ]


async def test_a_check_that_fails_does_not_keep_the_others_from_looking(
    store: Drifting, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_: TaskBook) -> None:
        raise LookupError("a fault of ours")

    monkeypatch.setattr(TaskBook, "expire_overdue", fail)
    await store.damage("INSERT INTO documents VALUES ('gone', '{}')")

    assert list(await store.found()) == ["results_without_task"]
    assert store.tally("deadlines_passed").num_failed == 1


async def test_nobody_looks_further_while_the_store_refuses(
    store: Drifting, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(_: TaskBook) -> None:
        raise StoreUnavailable("full")

    with monkeypatch.context() as patched:
        patched.setattr(TaskBook, "expire_overdue", refuse)
        assert "expired_leases" not in await store.reconciliation.look(is_whole=True)

    store.advance(1.0)
    assert "expired_leases" in await store.reconciliation.look()


async def test_checks_look_as_often_as_they_say(store: Drifting) -> None:
    class Seldom(Check):
        name, looks_at, repair, every_s = "seldom", "", "", 5.0

        def __init__(self) -> None:
            """It needs nothing."""

        async def look(self) -> list[Finding]:
            return []

    reconciliation = Reconciliation([Seldom()], store.clock)
    looks = []
    for _ in range(11):
        looks.append("seldom" in await reconciliation.look())
        store.advance(1.0)

    assert [second for second, looked in enumerate(looks) if looked] == [0, 5, 10]


def test_every_check_has_a_name_of_its_own_and_says_what_it_does() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    assert all(check.looks_at and check.repair and check.every_s > 0 for check in CHECKS)


# -- a control plane that was away


async def test_leases_outlive_a_control_plane_that_was_away(store: Drifting) -> None:
    task = await store.running()
    store.advance(3 * TTL_S)

    found = await store.found()

    assert "stood still for 30.0 s; 1 leases got a full term" in str(found)
    assert await state_of(store, task.id) is TaskState.LEASED
    for _ in range(11):
        store.advance(1.0)
        await store.reconciliation.look()
    assert await state_of(store, task.id) is TaskState.QUEUED
