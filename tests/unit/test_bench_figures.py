"""What the engine's benchmark reads from the times of tokens."""

from __future__ import annotations

import pytest

from benchmarks.engine import figures
from benchmarks.engine.contenders.base import Run
from benchmarks.engine.figures import Sample
from benchmarks.engine.report import Report
from benchmarks.report import Figure


def run(*arrivals: list[float]) -> Run:
    return Run([[7] * len(moments) for moments in arrivals], list(arrivals))


def test_decoding_counts_only_while_every_job_decodes() -> None:
    staggered = run([1.0, 2.0, 3.0, 4.0], [3.0, 4.0, 5.0, 6.0])

    assert figures.decode_rate(staggered) == 2.0


def test_there_is_no_decode_rate_when_jobs_never_decode_together() -> None:
    assert figures.decode_rate(run([1.0, 2.0], [3.0, 4.0])) is None


def test_end_to_end_counts_prompts_too() -> None:
    assert figures.end_to_end_rate(run([4.0, 5.0], [5.0, 8.0])) == 0.5


def test_noisy_repetitions_do_not_count() -> None:
    slow, quick, quicker = run([1.0, 3.0]), run([1.0, 2.0]), run([1.0, 1.5])

    got = figures.outcome([Sample(slow, 0.5), Sample(quick, 0.01), Sample(quicker, 0.02)])

    assert got.decode_rate == 1.5
    assert got.noise_ratio == 0.02


def test_the_spread_is_that_of_all_repetitions() -> None:
    slow, quick = run([1.0, 3.0]), run([1.0, 2.0])

    got = figures.outcome([Sample(slow, 0.5), Sample(quick, 0.01)])

    assert got.spread_ratio == pytest.approx(0.5 / 0.75)


def test_tokens_that_arrive_together_are_one_gap() -> None:
    found = figures.gaps(run([1.0, 3.0, 3.0, 4.0]), [0], since_s=1.0, until_s=9.0)

    assert found == [2.0, 1.0]


def test_gaps_belong_to_the_window_they_end_in() -> None:
    found = figures.gaps(run([1.0, 3.0, 6.0]), [0], since_s=3.0, until_s=6.0)

    assert found == [3.0]


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (1.0, 100)])
def test_a_percentile_is_a_value_that_was_seen(share: float, expected: int) -> None:
    assert figures.percentile(range(1, 101), share) == expected


def test_tokens_are_compared_as_far_as_both_go() -> None:
    assert figures.num_equal([[1, 2], [1, 3], []], [[1, 2, 9], [1, 2, 9], [1]]) == 1


def test_a_missed_goal_shows_in_the_last_line() -> None:
    report = Report()
    report.figure(Figure("gap", 3.5, goal=3.0, is_cost=True))
    report.figure(Figure("ratio", 1.5, goal=1.4))

    assert "gap 3.5 (goal <= 3: MISSED)" in report.line()
    assert "ratio 1.5 (goal >= 1.4: met)" in report.line()


def test_wrong_tokens_show_in_the_last_line() -> None:
    assert "tokens differ: plait 1 of 8" in Report(wrong=["plait 1 of 8"]).line()
