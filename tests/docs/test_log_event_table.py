"""docs/operating.md has every event the scheduler logs, and no other."""

from __future__ import annotations

import re

from tests.docs.pages import ROOT, names, rows, section, text_of

#: Deciders hand events over as values, by a method of this name.
_LOGGED = re.compile(r"(?:\blog\.(?:debug|info|warning|error|exception)|\._say)\(\s*([^,)]+)")


def logged() -> set[str]:
    """The names in the first argument of every call; a conditional has two."""
    sources = [path.read_text("utf-8") for path in (ROOT / "scheduler").rglob("*.py")]
    arguments = [match for source in sources for match in _LOGGED.findall(source)]
    return {name for argument in arguments for name in re.findall(r'"([a-z_]+)"', argument)}


def test_the_table_has_every_event_and_no_other() -> None:
    table = rows(section(text_of("operating.md"), "## Logs"))

    assert {name for row in table for name in names(row[0])} == logged()
