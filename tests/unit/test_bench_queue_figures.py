"""What the queue's benchmark reads from its ledger and its times."""

from __future__ import annotations

import pytest

from benchmarks.queue import figures, roster
from benchmarks.queue.figures import Latency
from benchmarks.queue.ledger import Row


def row(begun: float | None = None, done: float | None = None, submitted: float = 0.0) -> Row:
    return Row(submitted, begun, done, int(begun is not None))


def test_only_repetitions_about_as_quiet_as_the_quietest_count() -> None:
    assert figures.quiet([0.5, 0.011, 0.0, 0.03]) == [1, 2]


def test_draining_is_counted_from_the_first_beginning_to_the_last() -> None:
    assert figures.drain_rate([row(12.0), row(10.0), row(11.0)]) == 1.0


def test_tasks_that_never_began_do_not_count_as_drained() -> None:
    assert figures.drain_rate([row(10.0), row(11.0), row()]) == 1.0


@pytest.mark.parametrize("rows", [[], [row()], [row(10.0)]])
def test_fewer_than_two_tasks_have_no_rate(rows: list[Row]) -> None:
    assert figures.drain_rate(rows) == 0.0


def test_latency_is_from_submitting_to_beginning() -> None:
    got = figures.latency([row(2.0, submitted=1.0), row(5.0, submitted=1.0), row(4.0)])

    assert got == Latency(median_s=4.0, p99_s=4.0, num_missing=0)


def test_tasks_that_never_began_are_told_with_the_latency() -> None:
    got = figures.latency([row(2.0, submitted=1.0), row()])

    assert got == Latency(median_s=1.0, p99_s=1.0, num_missing=1)


def test_there_is_no_latency_when_no_task_began() -> None:
    assert figures.latency([row(), row()]) is None


def test_tasks_done_before_a_kill_count_as_done_after_it() -> None:
    rows = [row(0.0, 1.0), row(0.0, 12.0), row(0.0, 30.0), row(0.0)]

    assert figures.num_done_within(rows, since_at=2.0, within_s=10.0) == 2


@pytest.mark.parametrize(
    ("after", "expected"), [((1_000.0, 6.0), 2.0), ((100_000.0, 12.0), 2.0), ((100.0, 6.0), 4.0)]
)
def test_growth_is_told_for_each_factor_of_a_hundred(
    after: tuple[float, float], expected: float
) -> None:
    assert figures.growth((10.0, 3.0), after) == pytest.approx(expected)


def test_the_best_is_the_fastest() -> None:
    assert figures.best({"slow": 1.0, "fast": 3.0, "middling": 2.0}) == ("fast", 3.0)


def test_nobody_is_best_when_nobody_takes_part() -> None:
    assert figures.best({}) is None


def test_every_file_of_the_folder_is_a_contender_and_ours_come_first() -> None:
    names = roster.names()

    assert names[0].startswith("plait")
    assert "huey_sqlite" in names
    assert "base" not in names
