"""What the driver makes of what it hears, or does not hear, of a stage."""

from __future__ import annotations

import pytest

from handlers.pipeline.member import Member

SILENCE_S, STEP_S, STARTUP_S = 10.0, 20.0, 100.0


class Process:
    """Stands for a process that runs."""

    pid = 1

    def poll(self) -> None:
        return None


@pytest.fixture
def member() -> Member:
    member = Member(0)
    member.process = Process()
    member.connected(object())
    member.heard_at = 100.0
    return member


def complaint(member: Member, now: float) -> str:
    return member.complaint(now, SILENCE_S, STEP_S, STARTUP_S)


def test_a_step_that_takes_too_long_is_complained_of(member: Member) -> None:
    member.is_due(100.0)

    assert not complaint(member, 119.0)
    assert "at one step for 21 s" in complaint(member, 121.0)


def test_a_step_that_is_done_is_not(member: Member) -> None:
    member.is_due(100.0)
    member.is_through(101.0)

    assert not complaint(member, 200.0)


def test_the_time_of_a_further_step_begins_when_the_one_before_is_done(member: Member) -> None:
    member.is_due(100.0)
    member.is_due(100.0)
    member.is_through(115.0)

    assert not complaint(member, 130.0)
    assert complaint(member, 136.0)


def test_a_step_heard_to_be_done_before_it_was_heard_to_arrive_is_done(member: Member) -> None:
    member.is_through(100.0)
    member.is_due(100.1)

    assert not complaint(member, 200.0)


def test_who_does_not_answer_a_ping_is_complained_of(member: Member) -> None:
    assert member.wants_ping(103.0, every_s=2.5)

    assert not complaint(member, 112.0)
    assert "has not answered" in complaint(member, 114.0)


def test_who_has_answered_is_asked_again_later(member: Member) -> None:
    member.wants_ping(103.0, every_s=2.5)
    member.heard_at = 103.1

    assert not complaint(member, 120.0)
    assert not member.wants_ping(105.0, every_s=2.5)
    assert member.wants_ping(106.0, every_s=2.5)


def test_who_is_busy_with_a_command_has_the_time_for_starting_up(member: Member) -> None:
    member.begin("load", 100.0)

    assert not member.wants_ping(150.0, every_s=2.5)
    assert not complaint(member, 199.0)
    assert "to load" in complaint(member, 201.0)
