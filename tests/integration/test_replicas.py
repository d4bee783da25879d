"""A node's replicas, kept against a double of TorchServe; the clock is turned by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio

from scheduler.clock import ManualClock, SystemClock
from scheduler.rpc import plait_pb2 as pb
from scheduler.runner.replicas import Listeners, Replicas
from scheduler.testing.torchserve import FakeTorchServe
from scheduler.torchserve.archive import ArchiveError
from scheduler.torchserve.endpoint import Endpoint
from scheduler.torchserve.management import Management, ManagementError
from tests.waiting import until

NAME = "demo__r0"
STATES = pb.Replica


@dataclass
class Kept:
    torchserve: FakeTorchServe
    replicas: Replicas
    clock: ManualClock
    in_flight: dict[str, int] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    num_changes: int = 0

    def want(self, *names: str, devices: tuple[int, ...] = ()) -> None:
        self.replicas.want(
            [pb.DesiredReplica(name=n, model="demo", device_ids=devices) for n in names]
        )

    async def until(self, state: int | None, name: str = NAME) -> pb.Replica | None:
        """Wait until the replica is reported in a state; None: until it is not reported."""
        return await until(
            lambda: {r.name: r for r in self.replicas.report()}.get(name),
            lambda found: (found.state if found is not None else None) == state,
        )

    async def looks(self, count: int = 3) -> None:
        """Let some looks go by."""
        for _ in range(count):
            self.replicas.has_looked.clear()
            self.replicas.look_again()
            await self.replicas.has_looked.wait()


def config() -> Any:
    return SimpleNamespace(name="demo", max_batch=4, startup_timeout_s=60)


def build(config: Any, store: Path, index: int, device_ids: tuple[int, ...]) -> Path:
    folder = store / f"{config.name}__r{index}"
    (folder / "MAR-INF").mkdir(parents=True, exist_ok=True)
    (folder / "MAR-INF" / "MANIFEST.json").write_text("{}")
    return folder


@pytest_asyncio.fixture
async def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Kept]:
    monkeypatch.setattr("scheduler.runner.replicas.build_replica", build)
    torchserve = FakeTorchServe(tmp_path / "state", tmp_path / "archives")
    await torchserve.start()
    management = Management(Endpoint(tmp_path / "state"), SystemClock())
    clock = ManualClock()
    kept = Kept(torchserve, None, clock)

    def changed() -> None:
        kept.num_changes += 1

    listeners = Listeners(lambda: kept.in_flight, changed, lambda name, _: kept.broken.append(name))
    kept.replicas = Replicas(
        management, {"demo": config()}, tmp_path / "archives", clock, listeners, poll_s=0.02
    )
    running = asyncio.create_task(kept.replicas.run())
    yield kept
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await management.close()
    await torchserve.stop()


async def test_a_wanted_replica_is_started_and_becomes_ready(kept: Kept) -> None:
    kept.want(NAME)

    found = await kept.until(STATES.READY)

    assert found is not None
    assert (found.model, found.capacity) == ("demo", 4)


async def test_what_its_engine_writes_is_reported_as_long_as_it_is_whole(kept: Kept) -> None:
    kept.want(NAME)
    await kept.until(STATES.READY)
    status = kept.torchserve.store / NAME / "engine_status.json"

    told = []
    for text in ('{"epoch": 1}', '{"epoch"', '{"epoch": 2}'):
        status.write_text(text)
        await kept.looks()
        told += [replica.engine_json for replica in kept.replicas.report()]

    assert told == ['{"epoch":1}', "", '{"epoch":2}']


async def test_what_an_earlier_worker_wrote_is_not_told_of_a_new_one(kept: Kept) -> None:
    folder = build(config(), kept.torchserve.store, 0, ())
    (folder / "engine_status.json").write_text('{"epoch": 1}')

    kept.want(NAME)
    found = await kept.until(STATES.READY)

    assert found is not None
    assert found.engine_json == ""


async def test_each_change_is_told_at_once(kept: Kept) -> None:
    kept.want(NAME)
    await kept.until(STATES.READY)

    assert kept.num_changes == 2


async def test_nothing_is_removed_before_somebody_said_what_is_wanted(kept: Kept) -> None:
    kept.want(NAME)
    await kept.until(STATES.READY)
    kept.replicas._wanted = None

    await kept.looks()

    assert NAME in kept.torchserve.models


async def test_a_replica_that_is_not_wanted_drains_and_goes(kept: Kept) -> None:
    kept.want(NAME)
    await kept.until(STATES.READY)
    kept.in_flight[NAME] = 1
    kept.want()
    await kept.until(STATES.DRAINING)
    await kept.looks()
    assert NAME in kept.torchserve.models

    kept.in_flight.clear()

    await kept.until(None)
    assert NAME not in kept.torchserve.models


async def test_a_draining_replica_that_is_wanted_again_stays(kept: Kept) -> None:
    kept.want(NAME)
    await kept.until(STATES.READY)
    kept.in_flight[NAME] = 1
    kept.want()
    await kept.until(STATES.DRAINING)

    kept.want(NAME)

    await kept.until(STATES.READY)


async def test_models_that_are_not_replicas_of_ours_are_left_alone(kept: Kept) -> None:
    kept.want(NAME)
    await kept.until(STATES.READY)
    model = kept.torchserve.models.pop(NAME)
    kept.torchserve.models["somebodys"] = replace(model, name="somebodys")
    kept.want()

    await kept.looks()

    assert list(kept.torchserve.models) == ["somebodys"]


async def test_a_replica_that_lost_a_task_is_not_ready_for_a_second(kept: Kept) -> None:
    kept.want(NAME)
    await kept.until(STATES.READY)

    kept.replicas.suspect(NAME, "worker died")
    await kept.looks()
    found = await kept.until(STATES.STARTING)
    assert found is not None
    assert found.detail == "worker died"

    kept.clock.advance(1.1)
    await kept.until(STATES.READY)


async def test_a_replica_whose_worker_never_comes_back_is_made_anew(kept: Kept) -> None:
    kept.want(NAME)
    await kept.until(STATES.READY)
    before = kept.torchserve.models[NAME]
    kept.torchserve.give_up_worker(NAME)
    await kept.until(STATES.STARTING)

    kept.clock.advance(91)

    await kept.until(STATES.READY)
    assert kept.torchserve.models[NAME] is not before
    assert kept.broken == [NAME]


async def test_a_replica_scaled_to_nothing_is_made_anew(kept: Kept) -> None:
    kept.want(NAME)
    await kept.until(STATES.READY)
    before = kept.torchserve.models[NAME]
    kept.torchserve.leak_worker(NAME)
    await kept.until(STATES.STARTING)

    kept.clock.advance(6)

    await kept.until(STATES.READY)
    assert kept.torchserve.models[NAME] is not before


async def test_a_replica_on_other_devices_is_made_anew(kept: Kept) -> None:
    kept.want(NAME)
    await kept.until(STATES.READY)
    before = kept.torchserve.models[NAME]
    before.device_ids = [0, 1]

    await until(lambda: kept.torchserve.models.get(NAME, before) is not before)

    await kept.until(STATES.READY)
    assert kept.broken == []


async def test_a_replica_that_cannot_be_built_has_failed_and_says_why(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Path:
        raise ArchiveError("no weights here")

    monkeypatch.setattr("scheduler.runner.replicas.build_replica", refuse)
    kept.want(NAME)

    found = await kept.until(STATES.FAILED)

    assert found is not None
    assert found.detail == "no weights here"


async def test_a_replica_that_failed_is_tried_again_later(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(
            "scheduler.runner.replicas.build_replica",
            lambda config, store, index, device_ids: store / "missing",
        )
        kept.want(NAME)
        await kept.until(STATES.FAILED)
    await kept.looks()
    assert not kept.torchserve.models

    kept.clock.advance(2.1)

    await kept.until(STATES.READY)


async def test_replicas_are_not_ready_while_torchserve_is_away(kept: Kept) -> None:
    kept.want(NAME)
    await kept.until(STATES.READY)

    await kept.torchserve.stop()
    await kept.until(STATES.STARTING)
    await kept.torchserve.start()

    await kept.until(STATES.READY)


async def test_a_replica_that_cannot_be_removed_is_tried_again_later(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.want(NAME)
    await kept.until(STATES.READY)
    tried: list[str] = []

    async def refuse(name: str) -> None:
        tried.append(name)
        raise ManagementError(f"unregister {name}", 500, "for the test")

    with monkeypatch.context() as patch:
        patch.setattr(kept.replicas._management, "unregister", refuse)
        kept.want()
        await kept.until(STATES.DRAINING)
        await kept.looks(5)
        assert tried == [NAME]

    kept.clock.advance(2)
    await kept.until(None)


async def test_a_fault_of_our_own_is_tried_again_later(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Path:
        raise KeyError("for the test")

    with monkeypatch.context() as patch:
        patch.setattr("scheduler.runner.replicas.build_replica", fail)
        kept.want(NAME)
        found = await kept.until(STATES.FAILED)
    assert found is not None
    assert "for the test" in found.detail

    kept.clock.advance(2)
    await kept.until(STATES.READY)


async def test_a_replica_that_only_loses_tasks_is_believed_ever_later(kept: Kept) -> None:
    kept.want(NAME)
    await kept.until(STATES.READY)
    for suspicion_s in (1, 2, 4):
        kept.replicas.suspect(NAME, "lost")
        kept.replicas.suspect(NAME, "lost together with it")
        kept.clock.advance(suspicion_s - 0.5)
        await kept.looks()
        await kept.until(STATES.STARTING)
        kept.clock.advance(0.5)
        await kept.until(STATES.READY)

    kept.replicas.trust(NAME)
    kept.replicas.suspect(NAME, "lost after it had finished one")
    kept.clock.advance(1)

    await kept.until(STATES.READY)


async def test_a_replica_that_loses_all_it_is_given_is_made_anew(kept: Kept) -> None:
    kept.want(NAME)
    await kept.until(STATES.READY)
    before = kept.torchserve.models[NAME]

    for suspicion_s in (1, 2, 4, 8):
        kept.replicas.suspect(NAME, "lost")
        kept.clock.advance(suspicion_s)
        await kept.looks()

    await kept.until(STATES.READY)
    assert kept.torchserve.models[NAME] is not before
    assert kept.broken == [NAME]


async def test_a_replica_that_has_gone_silent_is_made_anew_at_once(kept: Kept) -> None:
    kept.want(NAME)
    await kept.until(STATES.READY)
    before = kept.torchserve.models[NAME]

    kept.replicas.suspect(NAME, "no answer in time", is_silent=True)

    await until(lambda: kept.torchserve.models.get(NAME, before) is not before)
    kept.clock.advance(1)
    await kept.until(STATES.READY)


async def test_workers_that_torchserve_has_lost_count_of_are_killed_before_it_starts_another(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def sweep(state: Path, name: str) -> list[int]:
        order.append(f"kill what is left of {name}, {len(kept.torchserve.models)} registered")
        return []

    monkeypatch.setattr("scheduler.torchserve.management.sweep_replica", sweep)
    kept.want(NAME)
    await kept.until(STATES.READY)
    kept.torchserve.leak_worker(NAME)
    await kept.until(STATES.STARTING)

    kept.clock.advance(6)

    await kept.until(STATES.READY)
    assert order == [f"kill what is left of {NAME}, 0 registered"] * 2
