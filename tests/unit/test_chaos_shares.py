"""Shares are judged where tenants are busy together, and nowhere else."""

from __future__ import annotations

from scheduler.testing.chaos.history import Accepted, Computed, History, Seen, Sent
from scheduler.testing.chaos.shares import MIN_WAITING, unfair, windows

WEIGHTS = {"ann": 1.0, "bob": 2.0}


def busy(tokens: dict[str, int], *, until: float = 60.0) -> History:
    """Both have tasks waiting from 0 s on until one of bob's begins; each is served meanwhile."""
    history = History(0.0)
    for tenant, count in tokens.items():
        for number in range(MIN_WAITING + 1):
            key, seed = f"{tenant}-{number}", hash((tenant, number))
            history.add(Sent(0.0, key, tenant, {"seed": seed, "max_new_tokens": 10}))
            # The first is the one that is served, and waits no more.
            history.add(Accepted(0.0, key, key))
            if number == 0:
                history.add(Seen(0.0, key, key, "leased", 1, "r", False))
                history.records += [
                    Computed(until * place / (count + 1), "node-1", seed, place)
                    for place in range(1, count + 1)
                ]
    history.add(Seen(until, "bob-1", "bob-1", "leased", 1, "r", False))
    return history


def test_tenants_that_wait_together_make_a_window() -> None:
    [window] = windows(busy({"ann": 100, "bob": 200}), WEIGHTS)

    assert (window.start, window.end) == (0.0, 60.0)
    assert window.served == {"ann": 100, "bob": 200}


def test_shares_by_weight_are_fair() -> None:
    assert unfair(busy({"ann": 1000, "bob": 2000}), WEIGHTS, num_slots=4) == []


def test_a_tenant_that_is_served_less_than_its_weight_is_noticed() -> None:
    [problem] = unfair(busy({"ann": 1000, "bob": 1000}), WEIGHTS, num_slots=4)

    assert problem.startswith("promise 5: from 0 to 60 s ann and bob were served 500 tokens apart")


def test_what_is_in_flight_may_be_between_them() -> None:
    assert unfair(busy({"ann": 1000, "bob": 1000}), WEIGHTS, num_slots=40) == []


def test_a_short_window_says_nothing() -> None:
    assert windows(busy({"ann": 100, "bob": 200}, until=5.0), WEIGHTS) == []


def test_tokens_that_are_computed_again_are_nobodys_share() -> None:
    history = busy({"ann": 100, "bob": 200})
    history.records += [
        Computed(50.0, "node-2", record.seed, record.position)
        for record in history.records
        if isinstance(record, Computed)
    ]

    [window] = windows(history, WEIGHTS)

    assert window.served == {"ann": 100, "bob": 200}
