"""docs/reconciliation.md has every check, in order, and names tests that exist."""

from __future__ import annotations

import re

import pytest

from scheduler.reconciliation.checks import CHECKS
from tests.docs.pages import ROOT, names, rows, section, text_of

TABLE = rows(section(text_of("reconciliation.md"), "## The checks"))
NAMED = sorted({name for row in TABLE for name in names(row[3])})


def test_the_table_has_every_check_in_order_and_no_other() -> None:
    assert [names(row[0])[0] for row in TABLE] == [check.name for check in CHECKS]


def test_every_check_has_a_cause_a_repair_and_a_test() -> None:
    assert all(len(row) == 4 and all(row) for row in TABLE)


@pytest.mark.parametrize("name", NAMED)
def test_every_named_test_exists(name: str) -> None:
    path, test = name.split("::")

    source = (ROOT / "tests" / path).read_text("utf-8")
    assert re.search(rf"^(async )?def {test}\(", source, re.MULTILINE)
