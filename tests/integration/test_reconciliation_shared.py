"""Checks where several control planes share a database, and as operators see them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest_asyncio

from scheduler.drift import Finding
from scheduler.stores.postgres import Store
from scheduler.task import TaskState
from tests.integration.gateway_system import GatewaySystem
from tests.unit.drifting_store import Drifting, RunningMachine


@pytest_asyncio.fixture
async def planes(postgres_url: str) -> AsyncIterator[tuple[Drifting, Drifting]]:
    """Two control planes on one database."""
    opened = (
        Drifting(Store(postgres_url), machine=RunningMachine()),
        Drifting(Store(postgres_url), machine=RunningMachine()),
    )
    for plane in opened:
        await plane.reconciliation.look()
    yield opened
    for plane in opened:
        await plane.store.close()


async def test_what_one_control_plane_repairs_the_other_does_not_find(
    planes: tuple[Drifting, Drifting],
) -> None:
    here, there = planes
    task = await here.running(num_chunks=3)
    await here.damage("UPDATE flows SET num_leased = 5")
    await here.damage("DELETE FROM journal WHERE seq = 1")
    await here.damage("INSERT INTO documents VALUES ('gone', '{}')")

    await asyncio.gather(here.found(), there.found())

    assert await here.problems() == []
    assert (await there.found(), await here.found()) == ({}, {})
    repaired = await there.book.task(task.id)
    assert (repaired.state, repaired.num_chunks, repaired.num_lost) == (TaskState.QUEUED, 1, 1)


async def test_a_machine_s_clock_means_nothing_where_the_store_has_its_own(
    planes: tuple[Drifting, Drifting],
) -> None:
    here, there = planes
    task = await here.running()
    before = (await here.book.task(task.id)).lease_expires_at
    here.machine.set_by_s = 3600.0

    found = await here.found()

    (finding,) = found.pop("clock_skew")
    assert not finding.is_repaired
    assert "its machine's clock is" in finding.problem
    assert found == {}
    assert (await there.book.task(task.id)).lease_expires_at == before


async def test_operators_see_what_was_found_and_have_everything_looked_at(
    http: aiohttp.ClientSession, system: GatewaySystem
) -> None:
    def write(tx: object) -> None:
        tx._db.write("INSERT INTO documents VALUES ('gone', '{}')")  # type: ignore[attr-defined]  # what no move does

    await system.store.run(write)
    async with http.get("/v1/reconciliation") as answer:
        before = {each["name"]: each for each in (await answer.json())["checks"]}

    async with http.post("/v1/reconciliation") as answer:
        after = {each["name"]: each for each in (await answer.json())["checks"]}

    assert (before["results_without_task"]["num_looks"], before["clock_skew"]["open"]) == (0, [])
    counts = [after["results_without_task"][name] for name in ("num_found", "num_repaired")]
    assert counts == [1, 1]
    assert all(each["num_looks"] == 1 for each in after.values())


async def test_what_is_open_is_told_with_its_problem(
    http: aiohttp.ClientSession, system: GatewaySystem
) -> None:
    check = system.reconciliation._kept[0]
    check.tally = check.tally.__class__(
        "clock_skew", "", "", 1.0, open=(Finding("runner r1", "is late", is_repaired=False),)
    )

    async with http.get("/v1/reconciliation") as answer:
        first = (await answer.json())["checks"][0]

    assert first["open"] == [{"subject": "runner r1", "problem": "is late"}]
