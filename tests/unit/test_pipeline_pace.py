"""How long prefill steps are: short beside those that decode, and filling the stages else."""

from __future__ import annotations

import pytest

from handlers.pipeline.costs import RowTimes, TokenTimes
from handlers.pipeline.lanes import LaneModel
from handlers.pipeline.pace import Pace
from handlers.pipeline.schedule import Schedule, Sequence, Shape
from handlers.pipeline.step import Step
from tests.unit.pipeline_simulation import Simulation


def takes(stage: int, step: Step, num_busy: int) -> float:
    """A stage bound by bandwidth for few tokens and by arithmetic for many."""
    tokens = step.width * len(step.rows)
    return 0.010 + 0.0002 * tokens + 1e-7 * tokens * step.window


def simulation(num_stages: int, chunk: int = 512, rows: int = 8) -> tuple[Schedule, Simulation]:
    shape = Shape(num_stages, rows, chunk, 100_000, 10**9)
    schedule = Schedule(shape, LaneModel(num_stages))
    return schedule, Simulation(schedule, num_stages, takes)


def sequence(name: str, num_prompt: int) -> Sequence:
    return Sequence(name, 0, list(range(num_prompt)), num_prompt)


@pytest.mark.parametrize("num_stages", [1, 2, 4])
def test_a_long_prompt_lengthens_no_gap_beyond_the_factor(num_stages: int) -> None:
    schedule, run = simulation(num_stages)
    running = [sequence(str(index), 1) for index in range(6)]
    for each in running:
        schedule.add(each)
    run.run(100)
    quiet = max(run.gaps(running[0])[-10:])
    for name in ("first", "second"):
        schedule.add(sequence(name, 2000))
        run.run(300)

    assert run.grown_at["second"], "the prompt must get on, too"
    assert max(max(run.gaps(each)[20:]) for each in running) <= (1 + 1.5) * quiet * 1.1


def test_prefill_beside_decoding_grows_from_small_steps() -> None:
    schedule, run = simulation(1, chunk=512)
    schedule.add(sequence("short", 1))
    run.run(50)
    schedule.add(sequence("long", 3000))
    run.run(60)

    widths = [step.width for step in run.steps if step.width > 1]
    assert widths[0] == 32
    assert all(after <= 2 * max(widths[: at + 1]) for at, after in enumerate(widths[1:]))


def test_nobody_waits_for_two_prefill_steps_between_its_tokens() -> None:
    schedule, run = simulation(2)
    running = [sequence(str(index), 1) for index in range(6)]
    for each in [*running, sequence("long", 3000)]:
        schedule.add(each)
    run.run(200)

    since = dict.fromkeys(range(6), 0)
    for step in run.steps[8:]:
        for slot in since:
            since[slot] += step.width > 1
        for row in step.rows:
            assert since.get(row.slot, 0) <= 1
            since[row.slot] = 0


@pytest.mark.parametrize(("num_stages", "num_tokens"), [(1, 1000), (2, 400), (4, 512), (4, 4000)])
def test_a_prompt_alone_is_nearly_as_soon_through_as_with_the_best_chunk(
    num_stages: int, num_tokens: int
) -> None:
    def first_token_s(chunk: int, *, is_fixed: bool) -> float:
        schedule, run = simulation(num_stages, chunk)
        for name in ("learnt from", "measured"):
            before = run.now
            one = sequence(name, num_tokens)
            if is_fixed:
                schedule._pace.fill = lambda *_: chunk
            schedule.add(one)
            while not run.grown_at[name]:
                run.run(1)
            schedule.remove(one)
            while schedule.num_in_flight:
                run.run(1)
        return run.grown_at[name][0] - before

    best = min(first_token_s(chunk, is_fixed=True) for chunk in (32, 64, 128, 256, 512))

    assert first_token_s(512, is_fixed=False) <= 1.2 * best


def test_times_of_prefill_are_fitted_and_one_slow_step_is_not_believed() -> None:
    times = TokenTimes()
    for _ in range(10):
        for tokens, window in ((16, 64), (64, 64), (128, 256), (64, 1024)):
            times.observe(tokens, window, 0.01 + 0.001 * tokens + 1e-6 * tokens * window)
    expected = 0.01 + 0.256 + 1e-6 * 256 * 512

    assert times.predict(256, 512) == pytest.approx(expected, rel=0.02)
    times.observe(128, 256, 60.0)
    assert times.predict(256, 512) == pytest.approx(expected, rel=0.5)


def test_times_of_decode_are_those_seen_and_lines_between() -> None:
    times = RowTimes()
    assert times.predict(1, 4) is None
    for rows in (2, 4, 8):
        times.observe(2, rows, 0.010 + 0.001 * rows)

    assert times.predict(2, 6) == pytest.approx(0.016)
    assert times.predict(2, 16) == pytest.approx(0.026)
    assert times.predict(3, 4) == pytest.approx(0.014)


def test_the_first_step_of_a_shape_is_forgotten_for_the_second() -> None:
    times = RowTimes()
    times.observe(1, 4, 3.0)
    times.observe(1, 4, 0.01)

    assert times.predict(1, 4) == pytest.approx(0.01)


def test_a_pace_that_knows_nothing_is_short_beside_decoding() -> None:
    pace = Pace(2, 512, gap_factor=1.5)

    assert pace.beside(0.1, start=0) == 32
    assert pace.beside(None, start=0) == 32


def test_a_chunk_smaller_than_any_budget_is_the_budget() -> None:
    pace = Pace(1, 8, gap_factor=1.5)

    assert (pace.beside(None, 0), pace.fill(100, 0)) == (8, 8)
