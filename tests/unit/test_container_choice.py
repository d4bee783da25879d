"""Which provider gets the next container, and which loses one."""

from __future__ import annotations

from typing import Any

from scheduler.autoscaler.container_choice import Choice, Lack, Offer, choose
from scheduler.container import ContainerOrder, OrderState
from scheduler.providers.base import ProviderConfig
from scheduler.records import changed


def offer(name: str = "here", *states: OrderState, **changes: Any) -> Offer:
    orders = tuple(ContainerOrder(name, i, 1, state) for i, state in enumerate(states))
    own = ("price", "rate", "closed", "most", "idle_since", "settled", "last")
    given = {key: changes.pop(key) for key in own if key in changes}
    config = ProviderConfig(name, "local", changes.pop("max_containers", 9), **changes)
    return Offer(config, orders, **{"price": 1.0, "rate": 0.0, **given})


def lack(count: int = 1, model: str = "demo", num_devices: int = 0) -> Lack:
    return Lack(model, count, num_devices)


def ordered(choice: Choice) -> list[str]:
    return [name for name, _ in choice.ordered]


def test_what_fits_nowhere_gets_a_container_each() -> None:
    assert ordered(choose([offer()], [lack(3)], 0.0)) == ["here"] * 3


def test_what_is_on_its_way_is_not_ordered_again() -> None:
    assert ordered(choose([offer("here", OrderState.ORDERED)], [lack(2)], 0.0)) == ["here"]


def test_one_that_has_settled_is_no_longer_on_its_way() -> None:
    here = offer("here", OrderState.UP, settled=frozenset({0}))

    assert ordered(choose([here], [lack()], 0.0)) == ["here"]


def test_the_cheapest_goes_first_up_to_its_limit() -> None:
    offers = [offer("dear", price=2.0), offer("cheap", price=1.0, max_containers=1)]

    assert ordered(choose(offers, [lack(2)], 0.0)) == ["cheap", "dear"]


def test_losses_make_a_provider_dearer() -> None:
    offers = [offer("flaky", price=1.0, rate=2.0), offer("calm", price=2.0, rate=0.05)]

    assert ordered(choose(offers, [lack()], 0.0)) == ["calm"]


def test_of_two_that_cost_nothing_the_one_that_loses_less_goes_first() -> None:
    offers = [offer("a", price=0.0, rate=0.5), offer("b", price=0.0, rate=0.05)]

    assert ordered(choose(offers, [lack()], 0.0)) == ["b"]


def test_a_container_with_room_for_two_costs_each_half() -> None:
    offers = [
        offer("big", price=1.5, num_devices=2),
        offer("small", price=1.0, num_devices=1),
    ]

    assert ordered(choose(offers, [lack(2, num_devices=1)], 0.0)) == ["big"]
    assert ordered(choose(offers, [lack(1, num_devices=1)], 0.0)) == ["small"]


def test_a_model_goes_only_where_it_may_and_fits() -> None:
    offers = [offer("other", models=("tiny",)), offer("few", num_devices=1)]

    choice = choose(offers, [lack(num_devices=2)], 0.0)

    assert not choice.ordered
    assert "no provider may run it" in choice.shortages["demo"]


def test_why_nobody_can_be_asked_is_told_of_each() -> None:
    offers = [
        offer("a", closed="left alone for a while: HTTP 500"),
        offer("b", OrderState.UP, max_containers=1, settled=frozenset({0})),
        offer("c", most=0),
    ]

    choice = choose(offers, [lack()], 0.0)

    assert not choice.ordered
    assert choice.shortages["demo"] == (
        "a: left alone for a while: HTTP 500; b: has the 1 containers it may have; "
        "c: has the 0 containers it may have"
    )


def test_one_that_is_about_to_go_is_kept_rather_than_another_ordered() -> None:
    choice = choose([offer("here", OrderState.LEAVING), offer("cheap", price=0.1)], [lack()], 0.0)

    assert [order.ordinal for order in choice.kept] == [0]
    assert not choice.ordered


def test_a_provider_that_takes_one_away_is_not_asked_for_more() -> None:
    choice = choose([offer("here", OrderState.REMOVING)], [lack()], 0.0)

    assert not choice.ordered
    assert choice.shortages["demo"] == "here: is taking one away"


def test_a_stalled_one_is_not_counted_on() -> None:
    here = offer("here", OrderState.UP)
    stalled = changed(here.orders[0], stalled_at=1.0)

    choice = choose([Offer(here.config, (stalled,), 1.0, 0.0)], [lack()], 0.0)

    assert ordered(choice) == ["here"]


def test_the_least_number_is_kept_without_anybody_who_needs_it() -> None:
    assert ordered(choose([offer(min_containers=2)], [], 0.0)) == ["here"] * 2


def leaving(choice: Choice) -> list[tuple[str, int]]:
    return [(order.provider, order.ordinal) for order, _ in choice.leaving]


def test_one_that_nobody_has_needed_for_long_enough_goes() -> None:
    here = offer("here", OrderState.UP, OrderState.UP, idle_since={1: 0.0}, idle_s=60.0)

    assert leaving(choose([here], [], 59.0)) == []
    assert leaving(choose([here], [], 60.0)) == [("here", 1)]


def test_nothing_goes_while_something_is_missing_or_nobody_knows_what_is_there() -> None:
    idle = {"idle_since": {0: 0.0}, "settled": frozenset({0})}
    here = offer("here", OrderState.UP, max_containers=1, **idle)
    unseen = offer("here", OrderState.UP, closed="not listed of late", **idle)

    assert leaving(choose([here], [lack()], 999.0)) == []
    assert leaving(choose([unseen], [], 999.0)) == []


def test_the_least_number_stays_although_idle() -> None:
    here = offer("here", OrderState.UP, min_containers=1, idle_since={0: 0.0})

    assert leaving(choose([here], [], 999.0)) == []


def test_where_only_the_last_can_go_an_idle_one_before_it_stays() -> None:
    up = (OrderState.UP, OrderState.UP)

    assert leaving(choose([offer("here", *up, idle_since={0: 0.0}, last=1)], [], 999.0)) == []
    assert leaving(choose([offer("here", *up, idle_since={1: 0.0}, last=1)], [], 999.0)) == [
        ("here", 1)
    ]


def test_a_lower_limit_lets_the_surplus_go_the_idle_first() -> None:
    here = offer("here", *[OrderState.UP] * 3, max_containers=2, idle_since={0: 998.0})

    assert leaving(choose([here], [], 999.0)) == [("here", 0)]
