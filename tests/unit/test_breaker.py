"""When a provider that failed is asked again."""

from __future__ import annotations

import pytest

from scheduler.autoscaler.breaker import Breaker
from scheduler.providers.base import ProviderLimited, ProviderRefused, ProviderUnavailable


def pause_s(breaker: Breaker) -> int:
    """Whole seconds after which it is asked again."""
    return next(second for second in range(1000) if breaker.may_ask(float(second)))


def test_a_few_failures_are_no_reason_to_wait() -> None:
    breaker = Breaker()
    for _ in range(2):
        breaker.failed(ProviderUnavailable("away"), 0.0)

    assert breaker.may_ask(0.0)


def test_from_the_third_on_each_doubles_the_pause_up_to_a_limit() -> None:
    breaker = Breaker()
    pauses = []
    for _ in range(10):
        breaker.failed(ProviderUnavailable("away"), 0.0)
        pauses.append(pause_s(breaker))

    assert pauses == [0, 0, 5, 10, 20, 40, 80, 160, 300, 300]


@pytest.mark.parametrize("error", [ProviderRefused("no"), ProviderLimited("too many", None)])
def test_a_no_is_left_alone_at_once(error: Exception) -> None:
    breaker = Breaker()
    breaker.failed(error, 0.0)

    assert pause_s(breaker) == 5


def test_who_says_how_long_to_wait_is_left_alone_for_as_long() -> None:
    breaker = Breaker()
    breaker.failed(ProviderLimited("too many", 42.0), 0.0)

    assert pause_s(breaker) == 42
    assert breaker.reason == "too many"


def test_an_answer_makes_all_well() -> None:
    breaker = Breaker()
    for _ in range(5):
        breaker.failed(ProviderUnavailable("away"), 0.0)
    breaker.succeeded()

    assert (pause_s(breaker), breaker.reason) == (0, "")
