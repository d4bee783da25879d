"""What has become of the containers that were ordered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from scheduler.autoscaler.container_orders import REMOVE_S, STALL_S, Seen, Verdict, judge
from scheduler.container import ContainerOrder, Event, OrderState
from scheduler.providers.base import Container, ContainerState, ProviderConfig

CONFIG = ProviderConfig("here", "local", 3, start_timeout_s=100.0)
UP = {"state": OrderState.UP, "container_id": "c0", "incarnation": "1", "up_at": 1.0}


def order(**changes: Any) -> ContainerOrder:
    values: dict[str, Any] = {"state": OrderState.ORDERED, "ordinal": 0, "generation": 1}
    return ContainerOrder("here", **{**values, **changes})


def listed(container_id: str = "c0", **changes: Any) -> Container:
    values: dict[str, Any] = {"state": ContainerState.RUNNING, "incarnation": "1"}
    return Container(container_id, **{**values, **changes})


def verdict(
    orders: Sequence[ContainerOrder],
    listing: Sequence[Container],
    *connected: str,
    replaces_lost: bool = False,
    **changes: Any,
) -> Verdict:
    values: dict[str, Any] = {"now": 50.0, "away_since": {}, "began_at": -1000.0}
    seen = Seen(listing=listing, connected=frozenset(connected), **{**values, **changes})
    return judge(CONFIG, replaces_lost, orders, seen)


def states(found: Verdict) -> list[OrderState]:
    return [each.state for each in found.orders]


def events(found: Verdict) -> list[Event]:
    return [event for event, _ in found.events]


def test_one_is_up_once_its_runner_is_there() -> None:
    [found] = verdict([order()], [listed(key="here-0-1")], "c0").orders

    assert (found.state, found.container_id, found.up_at) == (OrderState.UP, "c0", 50.0)


def test_without_keys_any_that_is_nobody_s_is_taken_for_what_was_ordered() -> None:
    found = verdict([order(**UP), order(ordinal=1)], [listed("c1"), listed("c0")], "c0", "c1")

    assert [each.container_id for each in found.orders] == ["c0", "c1"]
    assert states(found) == [OrderState.UP, OrderState.UP]


def test_one_that_takes_too_long_is_slow_and_goes() -> None:
    late = {"now": 150.0}

    unseen = verdict([order()], [], **late)
    seen = verdict([order()], [listed(state=ContainerState.STARTING, reason="pulling")], **late)

    assert (states(unseen), events(unseen)) == ([OrderState.GONE], [Event.SLOW_START])
    assert (states(seen), events(seen)) == ([OrderState.REMOVING], [Event.SLOW_START])
    assert "pulling" in seen.orders[0].reason


def test_one_that_fails_to_start_goes_at_once() -> None:
    failed = listed(key="here-0-1", state=ContainerState.FAILED, reason="no such image")

    found = verdict([order()], [failed])

    assert (states(found), events(found)) == ([OrderState.REMOVING], [Event.SLOW_START])
    assert "no such image" in found.orders[0].reason


def test_one_that_is_neither_listed_nor_heard_of_is_lost() -> None:
    found = verdict([order(**UP)], [])

    assert (states(found), events(found)) == ([OrderState.GONE], [Event.LOSS])


def test_a_listing_that_lags_loses_nothing_whose_runner_is_there() -> None:
    found = verdict([order(**UP)], [], "c0")

    assert (states(found), events(found)) == ([OrderState.UP], [])


def test_another_under_the_same_name_is_a_loss() -> None:
    found = verdict([order(**UP)], [listed(incarnation="2")], "c0", replaces_lost=True)

    assert (states(found), events(found)) == ([OrderState.ORDERED], [Event.LOSS])
    assert found.orders[0].incarnation == "2"


def test_where_the_provider_replaces_lost_ones_the_order_stands() -> None:
    found = verdict([order(**UP)], [], replaces_lost=True)

    [again] = found.orders
    assert (again.state, again.key, again.ordered_at) == (OrderState.ORDERED, "here-0-1", 50.0)


def test_one_that_failed_is_lost_and_cleared_away() -> None:
    found = verdict([order(**UP)], [listed(state=ContainerState.FAILED, incarnation="")])

    assert (states(found), events(found)) == ([OrderState.REMOVING], [Event.LOSS])


def test_a_runner_that_stays_away_has_stalled_once() -> None:
    away = {"away_since": {"c0": 0.0}}

    soon = verdict([order(**UP)], [listed()], now=STALL_S - 1, **away)
    late = verdict([order(**UP)], [listed()], now=STALL_S, **away)
    later = verdict(late.orders, [listed()], now=STALL_S + 5, **away)

    assert (events(soon), events(late), events(later)) == ([], [Event.STALL], [])
    assert late.orders[0].stalled_at == STALL_S


def test_one_that_has_stalled_for_as_long_as_a_start_takes_goes() -> None:
    stalled = order(**UP, stalled_at=0.0)

    assert states(verdict([stalled], [listed()], now=99.0)) == [OrderState.UP]
    assert states(verdict([stalled], [listed()], now=100.0)) == [OrderState.REMOVING]


def test_a_runner_that_comes_back_has_stalled_no_more() -> None:
    assert verdict([order(**UP, stalled_at=5.0)], [listed()], "c0").orders[0].stalled_at is None


def test_nothing_stalls_while_runners_come_back_to_a_new_control_plane() -> None:
    assert events(verdict([order(**UP)], [listed()], now=20.0, began_at=0.0)) == []


def test_one_that_was_to_be_removed_is_gone_when_it_is_not_listed() -> None:
    removing = order(**{**UP, "state": OrderState.REMOVING}, leaving_at=40.0)

    assert states(verdict([removing], [listed()])) == [OrderState.REMOVING]
    assert states(verdict([removing], [])) == [OrderState.GONE]


def test_one_that_the_provider_did_not_take_works_on() -> None:
    removing = order(**{**UP, "state": OrderState.REMOVING}, leaving_at=0.0)

    assert states(verdict([removing], [listed()], "c0", now=REMOVE_S)) == [OrderState.UP]


def test_one_of_ours_without_a_record_is_adopted() -> None:
    keyed = verdict([], [listed(key="here-2-7")], "c0")
    counted = verdict([], [listed()], "c0")

    assert [(each.ordinal, each.generation) for each in keyed.adopted] == [(2, 7)]
    assert [each.ordinal for each in counted.adopted] == [0]


@pytest.mark.parametrize("key", ["here-0-1", "elsewhere-0-9", "nonsense"])
def test_one_of_an_older_generation_or_of_nobody_is_unknown(key: str) -> None:
    current = order(**{**UP, "generation": 2, "container_id": "new"})

    found = verdict([current], [listed("new", key="here-0-2"), listed("old", key=key)], "new")

    assert [each.id for each in found.unknown] == ["old"]
    assert not found.adopted


def test_more_than_there_may_be_are_unknown() -> None:
    found = verdict([], [listed(f"c{number}") for number in range(4)])

    assert (len(found.adopted), len(found.unknown)) == (3, 1)
