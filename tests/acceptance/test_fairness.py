"""One tenant floods; the others do not notice more than they must."""

from __future__ import annotations

import pytest

from tests.acceptance.system import System
from tests.waiting import wait_for

pytestmark = [pytest.mark.torchserve, pytest.mark.timeout(300)]


def counts(system: System, tenant: str, state: str) -> int:
    return len(system.get(f"/v1/tasks?state={state}&limit=1000", tenant)["tasks"])


def cancel_all(system: System, tenant: str) -> None:
    for state in ("queued", "leased"):
        for task in system.get(f"/v1/tasks?state={state}&limit=1000", tenant)["tasks"]:
            system.post(f"/v1/tasks/{task['task_id']}/cancel", {}, tenant)


def test_a_short_request_overtakes_two_hundred_queued_ones(system: System) -> None:
    for index in range(200):
        system.submit("demo", "flood", prompt=f"a = {index}\n", max_new_tokens=32)
    queued_before = counts(system, "flood", "queued")

    answer = system.post("/predictions/demo", {"prompt": "b = ", "max_new_tokens": 8}, "light")

    queued_after = counts(system, "flood", "queued")
    cancel_all(system, "flood")
    assert answer.status_code == 200
    # It waited for a slot at most, not for the queue: two rounds of the replica's slots.
    assert queued_before > 100
    assert queued_before - queued_after <= 2 * 16


def test_a_short_request_does_not_wait_for_a_long_one_to_end(system: System) -> None:
    for tenant in ("light", "other"):
        system.post("/predictions/demo", {"prompt": "b = ", "max_new_tokens": 1}, tenant)
    for index in range(20):
        system.submit("demo", "long", prompt=f"e = {index}\n", max_new_tokens=900, ignore_eos=True)
    wait_for("the slots to be taken", lambda: counts(system, "long", "leased") >= 15)

    answer = system.post("/predictions/demo", {"prompt": "b = ", "max_new_tokens": 8}, "light")

    num_ended = counts(system, "long", "succeeded")
    cancel_all(system, "long")
    assert answer.status_code == 200
    assert num_ended == 0


def test_busy_tenants_are_served_in_proportion_to_their_weights(system: System) -> None:
    system.session.put(f"{system.address}/v1/tenants/gold/weight", json={"weight": 3.0})
    # The slots are taken while the two queue up, so that both are backlogged from the first claims;
    # one is kept for tenants that come while several are served.
    for index in range(16):
        system.submit(
            "demo", "filler", prompt=f"d = {index}\n", max_new_tokens=900, ignore_eos=True
        )
    wait_for("the slots to be taken", lambda: counts(system, "filler", "leased") >= 15)
    for index in range(80):
        for tenant in ("gold", "plain"):
            system.submit(
                "demo", tenant, prompt=f"c = {index:02}\n", max_new_tokens=24, ignore_eos=True
            )
    cancel_all(system, "filler")

    def served() -> dict[str, int] | None:
        listing = {t["tenant"]: t for t in system.get("/v1/tenants")["tenants"]}
        cost = {name: listing[name]["served_cost"].get("demo", 0) for name in ("gold", "plain")}
        return cost if cost["gold"] > 50 * 54 else None

    cost = wait_for("fifty tasks of gold", served, 120)
    still_queued = {tenant: counts(system, tenant, "queued") for tenant in ("gold", "plain")}
    for tenant in ("gold", "plain"):
        cancel_all(system, tenant)

    estimate = 2 * 24 + len("c = 00\n")
    assert all(still_queued.values()), "both must have been backlogged"
    assert abs(cost["gold"] / 3 - cost["plain"]) <= 2 * estimate
