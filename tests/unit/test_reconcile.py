from __future__ import annotations

from typing import Any

from scheduler.runner.reconcile import MAX_LOSSES, Action, State, Verdict, Wanted, decide
from scheduler.torchserve.management import Description

NAME = "demo__r0"
WANTED = Wanted(NAME, "demo")


def there(*workers: str, device_ids: tuple[int, ...] = ()) -> Description:
    return Description(NAME, workers, device_ids)


def verdict(wanted: Wanted | None, current: Description | None, **changes: Any) -> Verdict:
    values: dict[str, Any] = {"in_flight": 0, "not_ready_s": 0.0, "startup_timeout_s": 60.0}
    return decide(wanted, current, **{**values, **changes})


def test_a_wanted_replica_that_is_not_there_is_registered() -> None:
    assert verdict(WANTED, None).action is Action.REGISTER


def test_a_replica_with_its_one_worker_ready_is_ready() -> None:
    assert verdict(WANTED, there("READY")) == Verdict(State.READY)


def test_a_replica_that_loads_is_left_alone() -> None:
    found = verdict(WANTED, there("UNLOADING"), not_ready_s=59)

    assert (found.state, found.action) == (State.STARTING, Action.NOTHING)


def test_a_replica_that_is_not_wanted_and_idle_is_unregistered() -> None:
    found = verdict(None, there("READY"))

    assert (found.state, found.action) == (State.DRAINING, Action.UNREGISTER)


def test_a_replica_that_is_not_wanted_keeps_its_work_in_flight() -> None:
    found = verdict(None, there("READY"), in_flight=1)

    assert (found.state, found.action) == (State.DRAINING, Action.NOTHING)


def test_a_replica_on_the_wrong_devices_drains_first() -> None:
    wanted = Wanted(NAME, "demo", (2, 3))
    current = there("READY", device_ids=(0, 1))

    assert verdict(wanted, current, in_flight=1).action is Action.NOTHING
    assert verdict(wanted, current).action is Action.UNREGISTER


def test_a_replica_on_its_devices_is_ready() -> None:
    wanted = Wanted(NAME, "demo", (2, 3))

    assert verdict(wanted, there("READY", device_ids=(2, 3))).state is State.READY


def test_a_replica_that_does_not_get_ready_is_removed() -> None:
    found = verdict(WANTED, there("UNLOADING"), not_ready_s=91, in_flight=2)

    assert found.action is Action.REMOVE_BROKEN


def test_a_replica_without_a_worker_is_removed() -> None:
    assert verdict(WANTED, there(), not_ready_s=6).action is Action.REMOVE_BROKEN


def test_a_replica_without_a_worker_gets_a_moment() -> None:
    assert verdict(WANTED, there(), not_ready_s=1).action is Action.NOTHING


def test_a_replica_with_two_workers_is_removed() -> None:
    found = verdict(WANTED, there("READY", "READY"), not_ready_s=6)

    assert found.action is Action.REMOVE_BROKEN


def test_a_replica_that_says_ready_and_loses_all_its_work_is_made_anew() -> None:
    assert verdict(WANTED, there("READY"), num_losses=MAX_LOSSES - 1).state is State.READY

    found = verdict(WANTED, there("READY"), num_losses=MAX_LOSSES)

    assert (found.state, found.action) == (State.STARTING, Action.REMOVE_BROKEN)


def test_a_replica_that_has_gone_silent_is_made_anew() -> None:
    assert verdict(WANTED, there("READY"), is_silent=True).action is Action.REMOVE_BROKEN
