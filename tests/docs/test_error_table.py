"""docs/errors.md has every error, with its status, and no other."""

from __future__ import annotations

import inspect
import re
from types import ModuleType

import pytest

from scheduler import errors
from scheduler.errors import PlaitError
from scheduler.gateway import problems
from scheduler.gateway.problems import describe, http_problem, outcome_error
from scheduler.task import Task, TaskError, TaskState
from tests.docs.pages import names, rows, section, text_of

PAGE = text_of("errors.md")
ROWS = {names(row[0])[0]: row for row in rows(PAGE)}


def classes(module: ModuleType) -> dict[str, type[PlaitError]]:
    found = inspect.getmembers(module, inspect.isclass)
    return {n: c for n, c in found if issubclass(c, PlaitError) and c.__module__ == module.__name__}


CLASSES = {**classes(errors), **classes(problems)}


def ended(state: TaskState, status: int | None = None) -> Task:
    error = None if status is None else TaskError(status, "so it was")
    return Task("1", "ann", "demo", {}, state, 0, None, None, 1, 0, 2, error=error)


def types_without_a_class() -> dict[str, int]:
    """What a client may be told by another name than a class's, with the status it gets."""
    told = [
        describe(RuntimeError()),
        *(http_problem(status, "") for status in (404, 405)),
        *(describe(outcome_error(ended(s))) for s in (TaskState.CANCELLED, TaskState.EXPIRED)),
        describe(outcome_error(ended(TaskState.FAILED, 500))),
    ]
    return {problem.type: problem.code for problem in told}


def test_the_table_has_every_error_and_no_other() -> None:
    # Its name is Python's, and newer ones call it ContentTooLarge.
    assert set(ROWS) == {*CLASSES, *types_without_a_class(), "RequestEntityTooLarge"}


@pytest.mark.parametrize("name", sorted(set(CLASSES) - {"TaskUnsuccessful", "StartupError"}))
def test_the_status_of_a_class_is_the_code_s(name: str) -> None:
    assert ROWS[name][1].split()[0] == str(CLASSES[name].status)


@pytest.mark.parametrize(("name", "status"), types_without_a_class().items())
def test_the_status_of_an_answer_is_the_code_s(name: str, status: int) -> None:
    assert ROWS[name][1] == str(status)


def test_every_answer_says_what_it_means_and_what_to_do() -> None:
    answers = rows(section(PAGE, "## Answers of the gateway"))

    assert all(re.search(r"\w{3}", meaning + advice) for _, _, meaning, advice in answers)
    assert all(advice for _, _, _, advice in answers)


def test_a_failure_of_the_request_is_told_as_an_invalid_request() -> None:
    assert describe(outcome_error(ended(TaskState.FAILED, 422))).type == "InvalidRequest"
