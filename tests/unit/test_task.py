"""The life of a task as one table."""

from __future__ import annotations

import pytest

from scheduler.errors import InvalidTransition
from scheduler.task import TRANSITIONS, TaskState, check_move


def test_of_final_states_only_the_failed_have_a_move_for_dead_letters() -> None:
    moves = [(start, finish) for start, finish in TRANSITIONS if start.is_final]

    assert moves == [(TaskState.FAILED, TaskState.QUEUED)]


def test_every_state_but_queued_is_reached_from_another() -> None:
    assert {finish for _, finish in TRANSITIONS} == set(TaskState)


def test_a_refused_move_names_the_moves_there_are() -> None:
    with pytest.raises(InvalidTransition, match="queued to succeeded; from queued it may go to: c"):
        check_move("t1", TaskState.QUEUED, TaskState.SUCCEEDED)


def test_a_final_task_says_that_it_is_final() -> None:
    with pytest.raises(InvalidTransition, match="none: it is final"):
        check_move("t1", TaskState.SUCCEEDED, TaskState.QUEUED)
