"""The bubble in theory, and what is measured of a pipeline with known times."""

from __future__ import annotations

import pytest

from handlers.pipeline.bubble import cycle_s, idle_share
from handlers.pipeline.meter import Meter, StageTimes
from handlers.testing.simulated_pipeline import SimulatedPipeline


def metered(
    seconds: list[float], num_lanes: int, link_s: float = 0.0, num_steps: int = 400
) -> Meter:
    meter = Meter(len(seconds))
    pipeline = SimulatedPipeline(seconds.__getitem__, len(seconds), num_lanes, link_s)
    pipeline.run(meter, num_steps)
    return meter


def test_one_lane_keeps_one_stage_at_work() -> None:
    assert idle_share([2.0, 2.0, 2.0, 2.0], 1) == pytest.approx(3 / 4)


def test_as_many_lanes_as_equal_stages_leave_no_bubble() -> None:
    assert idle_share([2.0, 2.0, 2.0], 3) == pytest.approx(0)
    assert cycle_s([2.0, 2.0, 2.0], 3) == pytest.approx(6)


def test_the_slowest_stage_makes_the_others_wait() -> None:
    assert idle_share([1.0, 3.0], 2) == pytest.approx(1 - 4 / 6)


def test_links_are_hidden_by_one_lane_more() -> None:
    assert idle_share([1.0, 1.0], 2, latency_s=1.0) == pytest.approx(1 / 3)
    assert idle_share([1.0, 1.0], 3, latency_s=1.0) == pytest.approx(0)


def test_stages_that_take_no_time_have_no_bubble() -> None:
    assert idle_share([0.0, 0.0], 1) == 0


@pytest.mark.parametrize(
    ("seconds", "num_lanes", "link_s"),
    [
        ([1.0, 1.0], 1, 0.0),
        ([1.0, 1.0], 2, 0.0),
        ([1.0, 3.0], 2, 0.0),
        ([3.0, 1.0, 1.0], 2, 0.0),
        ([1.0, 2.0, 1.0, 2.0], 3, 0.0),
        ([1.0, 1.0], 2, 1.0),
        ([1.0, 1.0, 1.0], 4, 1.0),
    ],
)
def test_what_is_measured_of_a_simulated_pipeline_is_the_theory(
    seconds: list[float], num_lanes: int, link_s: float
) -> None:
    measured = metered(seconds, num_lanes, link_s).measured()

    assert measured.idle_share == pytest.approx(idle_share(seconds, num_lanes, link_s), abs=0.02)


def test_without_links_there_is_no_gap_to_the_theory() -> None:
    assert metered([1.0, 2.0], 2).measured().gap == pytest.approx(0, abs=0.02)


def test_links_show_as_a_gap_to_the_theory() -> None:
    measured = metered([1.0, 1.0], 2, link_s=1.0).measured()

    assert measured.theory == pytest.approx(0, abs=0.02)
    assert measured.gap == pytest.approx(1 / 3, abs=0.02)


def test_time_without_work_is_no_bubble() -> None:
    meter = Meter(1)
    meter.issued(1, 4, 1, 10.0)
    meter.done(1, 0, 1.0, 11.0)
    meter.issued(2, 4, 1, 500.0)
    meter.done(2, 0, 1.0, 501.0)

    assert meter.measured().work_s == pytest.approx(2.0)
    assert meter.measured().idle_share == pytest.approx(0)


def test_an_interval_begins_where_the_last_was_taken() -> None:
    meter = metered([1.0, 1.0], 2, num_steps=20)

    assert meter.take().num_steps == 20
    assert meter.measured().num_steps == 0


def test_stage_times_are_those_of_the_commonest_number_of_rows() -> None:
    meter = Meter(2)
    pipeline = SimulatedPipeline([0.1, 0.2].__getitem__, 2, 2)
    pipeline.run(meter, 30, rows=8)
    pipeline.time_of = [0.5, 0.5].__getitem__
    pipeline.run(meter, 3, rows=2)

    times = meter.stage_times()

    assert times == StageTimes(8, pytest.approx((0.1, 0.2)))


def test_prefill_is_work_but_no_decode_time() -> None:
    meter = Meter(1)
    for number in range(10):
        meter.issued(number, 1, 64, float(number))
        meter.done(number, 0, 1.0, number + 1.0)

    assert meter.measured().busy_s == (10.0,)
    assert meter.stage_times() is None


def test_a_pause_of_one_step_is_no_new_speed() -> None:
    meter = metered([0.1], 1, num_steps=50)
    meter.issued(999, 4, 1, 100.0)
    meter.done(999, 0, 60.0, 160.0)

    times = meter.stage_times()

    assert times is not None
    assert times.seconds[0] < 0.13


def test_stages_may_tell_of_a_step_out_of_order() -> None:
    meter = Meter(2)
    meter.issued(1, 4, 1, 0.0)
    meter.done(1, 1, 1.0, 2.0)
    meter.done(1, 0, 1.0, 2.1)

    assert meter.measured().busy_s == (1.0, 1.0)
    assert meter.measured().work_s == pytest.approx(2.0)


def test_what_is_told_of_an_unknown_step_is_nothing() -> None:
    meter = Meter(1)
    meter.done(7, 0, 1.0, 5.0)

    assert meter.measured().busy_s == (0.0,)
