"""What is kept of a run says what happened in it."""

from __future__ import annotations

from scheduler.testing.chaos.history import Fault, History, Sample, Seen, Sent, StoredTask
from scheduler.testing.chaos.report import BEGIN, BUCKET_S, END, summary, tables, with_tables


def history() -> History:
    run = History(0.0)
    run.records = [
        Sent(1.0, "k", "ann", {"seed": 1, "max_new_tokens": 3}),
        Seen(4.0, "k", "t", "succeeded", 1, None, True),
        Fault(2.0, 3.0, "runner killed", "node-1"),
        Sample(0.5, 3, 3, 0, 0, 3),
        Sample(1.5, None, None, None, None, 2),
        Sample(BUCKET_S + 0.5, 2, 2, 4, 1, 3),
    ]
    run.stored.tasks.append(StoredTask("t", "ann", "k", "succeeded", 1, 3, None))
    return run


def document() -> dict[str, object]:
    return summary(history(), [], seed=7, minutes=1.0, nodes=3, node="a node")


def test_series_tell_what_was_known_when() -> None:
    series = document()["series"]

    assert isinstance(series, dict)
    assert series["sent_per_s"] == [1 / BUCKET_S, 0.0]
    assert series["runners_connected"] == [3.0, 2.0]
    assert series["control_plane_up"] == [0.5, 1.0]
    assert series["nodes_whole"] == [2.5, 3.0]


def test_the_tables_name_seed_tasks_and_faults() -> None:
    text = tables(document())

    assert "| seed | 7 |" in text
    assert "| tasks at the end | 1 succeeded |" in text
    assert "| runner killed | 1 | 1.0 / 1.0 s | 0 |" in text


def test_tables_take_the_place_of_older_ones_under_their_name_only() -> None:
    marks = [BEGIN.format("mine"), "old", END.format("mine"), BEGIN.format("other"), "kept"]
    page = "\n".join(["# Page", *marks, END.format("other"), "after"])

    text = with_tables(page, document(), "mine")

    assert "old" not in text
    assert "| seed | 7 |" in text
    assert text.startswith("# Page\n")
    assert text.endswith("kept\n" + END.format("other") + "\nafter")
    assert with_tables(text, document(), "mine") == text
