"""reconciliation.md has every check, in order; it and failures.md name tests that exist."""

from __future__ import annotations

import re

import pytest

from scheduler.reconciliation.checks import CHECKS
from tests.docs.pages import ROOT, names, rows, section, text_of

CHECK_ROWS = rows(section(text_of("reconciliation.md"), "## The checks"))
FAILURE_ROWS = rows(text_of("failures.md"))
NAMED = sorted({name for row in [*CHECK_ROWS, *FAILURE_ROWS] for name in names(row[-1])})


def test_the_table_has_every_check_in_order_and_no_other() -> None:
    assert [names(row[0])[0] for row in CHECK_ROWS] == [check.name for check in CHECKS]


def test_every_check_has_a_cause_a_repair_and_a_test() -> None:
    assert all(len(row) == 4 and all(row) for row in CHECK_ROWS)


def test_every_failure_has_a_test_or_a_page() -> None:
    assert len(FAILURE_ROWS) > 30
    assert all(names(row[2]) or "](" in row[1] for row in FAILURE_ROWS)


@pytest.mark.parametrize("name", NAMED)
def test_every_named_test_exists(name: str) -> None:
    path, test = name.split("::")

    source = (ROOT / "tests" / path).read_text("utf-8")
    assert re.search(rf"^(async )?def {test}\(", source, re.MULTILINE)
