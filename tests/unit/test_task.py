"""The life of a task as one table."""

from __future__ import annotations

import pytest

from scheduler.errors import InvalidTransition
from scheduler.task import TRANSITIONS, TaskState, check_move


def test_final_states_have_no_move() -> None:
    assert not [start for start, _ in TRANSITIONS if start.is_final]


def test_every_state_but_queued_is_reached_from_another() -> None:
    assert {finish for _, finish in TRANSITIONS} == set(TaskState)


def test_a_refused_move_names_the_moves_there_are() -> None:
    with pytest.raises(InvalidTransition, match="queued to succeeded; from queued it may go to: c"):
        check_move("t1", TaskState.QUEUED, TaskState.SUCCEEDED)


def test_a_final_task_says_that_it_is_final() -> None:
    with pytest.raises(InvalidTransition, match="none: it is final"):
        check_move("t1", TaskState.FAILED, TaskState.QUEUED)
