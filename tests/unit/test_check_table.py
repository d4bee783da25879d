"""How the command line shows the checks."""

from __future__ import annotations

from scheduler import tables


def test_a_check_is_shown_with_what_is_open() -> None:
    check = {
        "name": "clock_skew",
        "num_looks": 5,
        "num_found": 2,
        "num_repaired": 1,
        "num_failed": 0,
        "looked_at": None,
        "open": [{"subject": "runner r1", "problem": "is late"}],
    }

    shown = tables.check_table({"checks": [check]})

    columns = [list(column.cells) for column in shown.columns]
    assert columns[0] == ["clock_skew", "  runner r1: is late"]
    assert [column[0] for column in columns[1:]] == ["5", "2", "1", "0", "-"]
