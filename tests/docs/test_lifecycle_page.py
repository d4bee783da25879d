"""docs/lifecycle.md shows the moves the code has."""

from __future__ import annotations

from scheduler.moves.base import _OUTCOMES
from scheduler.task import TaskState
from tests.docs.lifecycle_block import block, generated_part
from tests.docs.pages import names, rows, section, text_of

PAGE = text_of("lifecycle.md")


def test_diagram_and_table_are_the_code_s() -> None:
    hint = "run: .venv/bin/python -m tests.docs.lifecycle_block"

    assert generated_part(PAGE) == block(), hint


def test_every_state_has_a_row() -> None:
    table = rows(PAGE.split("<!--")[0])

    assert {names(row[0])[0] for row in table} == {state.value for state in TaskState}


def test_every_outcome_of_an_attempt_has_a_row() -> None:
    table = rows(section(PAGE, "## Attempts"))

    assert {names(row[0])[0] for row in table} == {
        "running",
        "parked",
        "hedged",
        *_OUTCOMES.values(),
    }
