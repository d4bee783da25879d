"""A clock that jumps does no harm: nothing is lost, and nothing ends that should not."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from scheduler.clock import SteadyClock
from scheduler.drift import Finding
from scheduler.errors import QuotaExceeded, StoreUnavailable
from scheduler.ids import IdSource
from scheduler.operations import Operations, TenantChange
from scheduler.task import TaskState
from tests.unit.drifting_store import TTL_S, Drifting, Machine, drifting, node

HOUR_S = 3600.0


@pytest_asyncio.fixture
async def store() -> AsyncIterator[Drifting]:
    async with drifting() as opened:
        yield opened


def test_a_steady_clock_does_not_jump_with_its_machine() -> None:
    machine = Machine()
    clock = SteadyClock(machine)
    before = clock.now()

    machine.set_by_s = HOUR_S
    machine.advance(2)

    assert clock.now() == before + 2
    assert clock.machine_now() == before + 2 + HOUR_S
    clock.set(clock.machine_now())
    assert clock.now() == before + 2 + HOUR_S


@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S])
async def test_a_clock_that_jumps_costs_nobody_a_lease(store: Drifting, jump_s: float) -> None:
    tasks = [await store.running() for _ in range(3)]
    store.machine.set_by_s = jump_s

    found = await store.found()

    problem = f"the clock jumped by {jump_s:+.1f} s; 3 leases got a full term"
    assert found == {"clock_skew": [Finding("this control plane", problem)]}
    now = store.machine.now()
    assert store.clock.now() == now
    for task in tasks:
        kept = await store.book.task(task.id)
        assert (kept.state, kept.lease_expires_at) == (TaskState.LEASED, now + TTL_S)
    assert await store.found() == {}


async def test_a_lease_nobody_renews_ends_a_term_after_the_clock_ran_back(store: Drifting) -> None:
    task = await store.running()
    store.machine.set_by_s = -HOUR_S
    await store.found()

    for _ in range(11):
        store.advance(1.0)
        await store.reconciliation.look()

    assert (await store.book.task(task.id)).state is TaskState.QUEUED


@pytest.mark.parametrize(("jump_s", "ends"), [(HOUR_S, True), (-HOUR_S, False), (30.0, False)])
async def test_deadlines_go_by_the_clock_as_it_is_set(
    store: Drifting, jump_s: float, ends: bool
) -> None:
    task = await store.submit(deadline_at=store.clock.now() + 60)

    store.machine.set_by_s = jump_s
    await store.found()

    assert (await store.book.task(task.id)).state.is_final == ends


async def test_nothing_is_judged_by_a_jump_before_leases_know_of_it(
    store: Drifting, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = await store.running()
    store.machine.set_by_s = HOUR_S

    async def refuse() -> int:
        raise StoreUnavailable("for the test")

    with monkeypatch.context() as patched:
        patched.setattr(store.book, "renew_all", refuse)
        for _ in range(3):
            assert "expired_leases" not in await store.reconciliation.look(is_whole=True)
            store.advance(1.0)

    assert "the clock jumped by +3600.0 s" in str(await store.found())
    assert (await store.book.task(task.id)).state is TaskState.LEASED


async def test_a_clock_that_drifts_is_followed_in_silence(store: Drifting) -> None:
    for _ in range(20):
        store.machine.set_by_s += 0.2
        store.advance(1.0)
        assert not any((await store.reconciliation.look()).values())

    assert store.clock.now() == pytest.approx(store.machine.now())


async def test_ids_go_on_growing_over_a_jump_back_and_a_restart(store: Drifting) -> None:
    first = await store.submit()
    store.machine.set_by_s = -HOUR_S
    await store.found()
    second = await store.submit()
    store.start()
    await store.found()
    store.new_id.follow(await store.book.newest_id())
    third = await store.submit()

    assert first.id < second.id < third.id


def test_two_control_planes_that_follow_the_same_id_draw_different_ones() -> None:
    machine = Machine()
    newest = IdSource(machine)()
    machine.set_by_s = -HOUR_S
    one, two = IdSource(machine), IdSource(machine)
    for source in (one, two):
        source.follow(newest)

    drawn = [source() for _ in range(100) for source in (one, two)]

    assert len(set(drawn)) == 200
    assert min(drawn) > newest


async def test_an_allowance_fills_up_again_after_the_clock_ran_back(store: Drifting) -> None:
    operations = Operations(store.book.ledger, store.rules.queue)
    await operations.set_tenant("ann", TenantChange(cost_per_minute=25))
    await store.submit()
    with pytest.raises(QuotaExceeded):
        await store.submit()
    store.machine.set_by_s = -HOUR_S
    await store.found()

    for _ in range(60):
        store.advance(1.0)
        await store.reconciliation.look()

    assert (await store.submit()).tenant == "ann"


async def test_a_runner_whose_clock_is_off_is_reported(store: Drifting) -> None:
    store.cluster.shown = [node("r1", clock_skew_s=1.0), node("r2", clock_skew_s=-90.0)]

    found = await store.found()

    problem = "its machine's clock is -90.0 s off the store's"
    assert found == {"clock_skew": [Finding("runner r2", problem, is_repaired=False)]}
