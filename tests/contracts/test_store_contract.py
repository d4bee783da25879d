"""What every store promises: one suite over every file of scheduler/stores.

This file: commands, and what operators keep in it; beside it tasks, flows and scaling.
"""

from __future__ import annotations

import asyncio
import threading
from pkgutil import iter_modules

import pytest

import scheduler.stores
from scheduler.errors import StoreUnavailable
from scheduler.flow import CLASS_WEIGHTS, DEFAULT_CLASS, Band, Tenant
from scheduler.keys import Key, Role, hashed
from scheduler.records import changed
from scheduler.stores.base import Store, Transaction
from scheduler.testing.tasks import MODEL
from tests.contracts.store_subjects import OPENERS, add, everything, flow, ids, task


def test_every_store_is_under_this_contract() -> None:
    files = {m.name for m in iter_modules(scheduler.stores.__path__) if m.name[0] != "_"}

    assert files - {"base"} == {name.split()[0] for name in OPENERS}


# -- commands


async def test_what_a_command_wrote_is_read_by_a_later_query(store: Store) -> None:
    await add(store, task())

    assert await store.read(lambda tx: tx.task("t1")) == task()


async def test_a_command_that_raises_has_had_no_effect(store: Store) -> None:
    def command(tx: Transaction) -> None:
        tx.add_task(task())
        raise LookupError("half way")

    with pytest.raises(LookupError, match="half way"):
        await store.run(command)
    assert await store.read(lambda tx: tx.task("t1")) is None


async def test_a_command_that_raises_leaves_its_neighbours_alone(store: Store) -> None:
    def bad(tx: Transaction) -> None:
        tx.add_task(task("bad"))
        raise LookupError

    commands = [add(store, task("t1")), store.run(bad), add(store, task("t2"))]
    answers = await asyncio.gather(*commands, return_exceptions=True)

    assert [type(answer) for answer in answers] == [type(None), LookupError, type(None)]
    assert ids(await everything(store)) == ["t2", "t1"]


async def test_commands_run_one_after_the_other(store: Store) -> None:
    def increment(tx: Transaction) -> None:
        ann = tx.tenant("ann")
        tx.put_tenant(changed(ann, weight_permille=ann.weight_permille + 1))

    await asyncio.gather(*(store.run(increment) for _ in range(200)))

    assert (await store.read(lambda tx: tx.tenant("ann"))).weight_permille == 1200


async def test_commands_that_wait_together_are_committed_together(store: Store) -> None:
    is_running, may_go_on = threading.Event(), threading.Event()

    def slow(tx: Transaction) -> None:
        is_running.set()
        assert may_go_on.wait(10)

    def add_one(tx: Transaction) -> None:
        ann = tx.tenant("ann")
        tx.put_tenant(changed(ann, weight_permille=ann.weight_permille + 1))

    first = asyncio.ensure_future(store.run(slow))
    await asyncio.to_thread(is_running.wait, 10)
    waiting = [asyncio.ensure_future(store.run(add_one)) for _ in range(200)]
    await asyncio.sleep(0)
    before = store.num_commits
    may_go_on.set()
    await asyncio.gather(first, *waiting)

    assert store.num_commits - before == 2
    assert (await store.read(lambda tx: tx.tenant("ann"))).weight_permille == 1200


async def test_a_caller_that_gives_up_does_not_disturb_the_next(store: Store) -> None:
    given_up = asyncio.ensure_future(add(store, task("t1")))
    await asyncio.sleep(0)
    given_up.cancel()

    await add(store, task("t2"))

    assert "t2" in ids(await everything(store))


async def test_a_closed_store_refuses(store: Store) -> None:
    await store.close()

    with pytest.raises(StoreUnavailable, match="closed"):
        await store.run(lambda tx: tx.depth())
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.read(lambda tx: tx.depth())


async def test_closing_finishes_what_was_asked_before(store: Store) -> None:
    asked = [asyncio.ensure_future(add(store, task(f"t{n}"))) for n in range(20)]
    await asyncio.sleep(0)

    await store.close()

    assert await asyncio.gather(*asked) == [None] * 20


async def test_a_command_that_raises_takes_back_what_it_did_to_flows_and_bands(
    store: Store,
) -> None:
    before, band = flow("ann", virtual_time=1, num_queued=1), Band(MODEL, DEFAULT_CLASS, 5, 1)

    def write(tx: Transaction) -> None:
        tx.put_flow(before)
        tx.put_band(band)

    def fail(tx: Transaction) -> None:
        tx.put_flow(changed(before, virtual_time=9))
        tx.put_flow(changed(tx.flow(MODEL, DEFAULT_CLASS, "new"), num_queued=3))
        tx.next_flow(MODEL, DEFAULT_CLASS)
        tx.put_band(changed(band, virtual_time=8))
        raise LookupError

    answers = await asyncio.gather(store.run(write), store.run(fail), return_exceptions=True)

    assert isinstance(answers[1], LookupError)
    assert await store.read(lambda tx: tx.flows(MODEL)) == [before]
    assert await store.run(lambda tx: tx.flow(MODEL, DEFAULT_CLASS, "ann")) == before
    assert await store.read(lambda tx: list(tx.bands(MODEL))) == [band]
    assert await store.run(lambda tx: tx.band(MODEL, DEFAULT_CLASS)) == band


# -- operator's data


async def test_a_tenant_for_which_nothing_was_set_has_the_defaults(store: Store) -> None:
    ann = Tenant("ann", 3000, 10, 2, 600, ("standard", "batch"), 17.5, 99.0)
    await store.run(lambda tx: tx.put_tenant(ann))

    assert await store.read(lambda tx: (tx.tenant("ann"), tx.tenant("bob"))) == (ann, Tenant("bob"))
    assert await store.read(lambda tx: tx.tenants()) == [ann]


async def test_classes_have_their_weights_and_those_that_were_set(store: Store) -> None:
    await store.run(lambda tx: tx.put_class("batch", 500))
    await store.run(lambda tx: tx.put_class("nightly", 10))

    weights = await store.read(lambda tx: dict(tx.class_weights()))
    assert weights == {**CLASS_WEIGHTS, "batch": 500, "nightly": 10}
    assert await store.read(lambda tx: tx.class_weight("nightly")) == 10


async def test_a_cost_factor_holds_for_its_model_and_device_kind(store: Store) -> None:
    await store.run(lambda tx: tx.put_cost_factor(MODEL, "cpu", 250))

    def factors(tx: Transaction) -> list[int]:
        return [tx.cost_factor(*key) for key in ((MODEL, "cpu"), (MODEL, "gpu"), ("other", "cpu"))]

    assert await store.read(factors) == [250, 1000, 1000]
    assert await store.read(lambda tx: tx.cost_factors()) == {(MODEL, "cpu"): 250}


async def test_desired_replicas_are_those_that_were_set(store: Store) -> None:
    await store.run(lambda tx: tx.put_desired_replicas(MODEL, 2))
    await store.run(lambda tx: tx.put_desired_replicas(MODEL, 0))

    assert await store.read(lambda tx: tx.desired_replicas()) == {MODEL: 0}


async def test_a_number_of_replicas_that_nobody_says_any_more_is_forgotten(store: Store) -> None:
    await store.run(lambda tx: tx.put_desired_replicas(MODEL, 2))
    await store.run(lambda tx: tx.remove_desired_replicas(MODEL))
    await store.run(lambda tx: tx.remove_desired_replicas("unheard of"))

    assert await store.read(lambda tx: tx.desired_replicas()) == {}


async def test_keys_are_listed_by_tenant_and_found_by_id(store: Store) -> None:
    key = Key("k1", "ann", Role.OPERATOR, hashed("secret"), 5.0, "laptop")
    revoked = changed(key, id="k2", tenant="bob", revoked_at=7.0)
    for each in (key, changed(revoked, revoked_at=None), revoked):
        await store.run(lambda tx, each=each: tx.put_key(each))

    assert await store.read(lambda tx: tx.keys("ann")) == [key]
    assert await store.read(lambda tx: tx.keys(None)) == [key, revoked]
    found = await store.read(lambda tx: (tx.key("k1"), tx.key("k2"), tx.key("k3")))
    assert found == (key, revoked, None)
    assert [each is not None and each.opens_with("secret", 0.0) for each in found] == [
        True,
        False,
        False,
    ]
