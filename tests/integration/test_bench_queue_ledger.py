"""The file in which all processes of the queue's benchmark write what happens to a task."""

from __future__ import annotations

from pathlib import Path

from benchmarks.queue.ledger import Ledger


def test_another_process_reads_what_was_written(tmp_path: Path) -> None:
    written = Ledger.create(tmp_path / "ledger", 2)
    written.submitted(1)
    written.begun(1)
    written.done(1)

    first, second = Ledger(tmp_path / "ledger").rows(range(2))

    assert (first.begun_at, first.num_runs) == (None, 0)
    assert second.submitted_at <= second.begun_at <= second.done_at


def test_a_second_run_is_counted_and_moves_no_moment(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "ledger", 1)
    ledger.begun(0)
    (before,) = ledger.rows([0])

    ledger.begun(0)

    (after,) = ledger.rows([0])
    assert (after.begun_at, after.num_runs) == (before.begun_at, 2)


def test_a_new_ledger_forgets_the_old_one(tmp_path: Path) -> None:
    Ledger.create(tmp_path / "ledger", 1).done(0)

    assert Ledger.create(tmp_path / "ledger", 1).num_done([0]) == 0
