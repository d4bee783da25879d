"""When a running task ends, from what it has produced."""

from __future__ import annotations

import pytest

from scheduler.dispatcher.course import Course


def after(*progress: tuple[float, int]) -> Course:
    """A course with so much left at each moment."""
    course = Course()
    for moment, num_left in progress:
        course.progressed(num_left, moment)
    return course


def test_it_ends_at_the_pace_it_has_had() -> None:
    course = after((10.0, 100), (12.0, 50), (13.6, 10))

    assert not course.is_ending(13.9)
    assert course.is_ending(14.0)


def test_the_wait_for_the_first_token_is_no_part_of_the_pace() -> None:
    assert not after((10.0, 2)).is_ending(10.0)
    assert after((10.0, 2), (10.02, 1)).is_ending(10.02)


def test_what_has_produced_all_it_may_is_about_to_end() -> None:
    assert after((10.0, 0)).is_ending(10.0)


def test_nothing_is_known_before_the_second_token() -> None:
    assert not after().is_ending(0.0)
    assert not after((10.0, 1)).is_ending(10.0)


@pytest.mark.parametrize("stuck", [after((10.0, 4), (10.1, 1)), after((10.0, 0))])
def test_what_is_late_is_not_counted_on(stuck: Course) -> None:
    assert not stuck.is_ending(11.0)


def test_what_has_produced_more_than_it_may_is_not_understood() -> None:
    assert not after((10.0, 1), (10.01, -1)).is_ending(10.01)
