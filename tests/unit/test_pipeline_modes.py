"""Steps of fixed shapes, and sequences that share fewer blocks than they could fill."""

from __future__ import annotations

import pytest

from handlers.pipeline.lanes import LaneModel
from handlers.pipeline.schedule import Schedule, Sequence, Shape
from handlers.pipeline.step import BLOCK
from tests.unit.schedules import added, begun, issued, schedule, shape_of, taken


def test_in_exact_mode_a_decode_step_has_all_rows_of_its_group() -> None:
    plan = schedule(stages=2, rows=6, is_exact=True)
    begun(plan, 1, 1, 1)

    steps = [issued(plan), issued(plan)]

    assert [[row.slot for row in step.rows] for step in steps] == [[0, 1, 2], [3, 4, 5]]
    assert [[row.num_tokens for row in step.rows] for step in steps] == [[1, 1, 0], [1, 0, 0]]


def test_in_exact_mode_a_prefill_step_has_one_row_and_a_whole_chunk() -> None:
    plan = schedule(chunk=8, is_exact=True)
    added(plan, 20, 3)

    steps = [issued(plan), issued(plan)]
    taken(plan, steps[0])
    steps.append(issued(plan))

    assert {step.width for step in steps} == {8}
    assert [shape_of(step) for step in steps] == [[(0, 0, 8)], [(0, 8, 8)], [(0, 16, 4)]]


def test_in_exact_mode_groups_stay_what_they_are_whatever_was_observed() -> None:
    lanes = LaneModel(2)
    for rows in (4, 8):
        for stage in (0, 1):
            lanes.observe(1, rows, stage, 0.01)
    plan = Schedule(Shape(2, 8, 8, 256, 32, is_exact=True), lanes)
    added(plan, 1)
    taken(plan, issued(plan))

    assert len(issued(plan).rows) == 4


def test_in_exact_mode_known_tokens_are_drawn_again_one_at_a_time() -> None:
    plan = schedule(is_exact=True)
    plan.add(Sequence("r", 0, [1, 2, 3, 901, 902], 3))
    steps, grown = [], []

    for token_id in (901, 902, 903):
        steps.append(issued(plan))
        grown.append(taken(plan, steps[-1], token_id))

    assert [shape_of(step)[0] for step in steps] == [(0, 0, 3), (0, 3, 1), (0, 4, 1)]
    assert grown == [[], [], ["r"]]
    assert [[opened.generated for opened in step.opens] for step in steps] == [
        [()], [], [(901, 902)],
    ]  # fmt: skip
    assert plan.counts().num_replay_mismatches == 0


def test_in_exact_mode_a_draw_that_differs_from_the_known_token_is_counted() -> None:
    plan = schedule(is_exact=True)
    one = Sequence("r", 0, [1, 2, 3, 901], 3)
    plan.add(one)

    taken(plan, issued(plan), 666)

    assert plan.counts().num_replay_mismatches == 1
    assert one.token_ids == [1, 2, 3, 901]


def test_too_few_blocks_for_one_context_are_refused() -> None:
    with pytest.raises(ValueError, match="5 at least"):
        Shape(1, 4, 8, 4 * BLOCK, 4)


def test_steps_tell_which_blocks_hold_a_slot() -> None:
    plan = schedule(chunk=100, num_blocks=6)
    added(plan, 65, 3)

    assert [change[:2] for change in issued(plan).tables] == [(0, 0), (0, 1), (1, 0)]


def test_a_sequence_is_admitted_when_its_tokens_fit() -> None:
    plan = schedule(chunk=256, num_blocks=6)
    first, second, third = added(plan, 200, 200, 3)
    issued(plan)

    assert [each.slot for each in (first, second, third)] == [0, None, None]
    plan.remove(first)
    issued(plan)
    assert [each.slot for each in (second, third)] == [0, 1]


def test_blocks_are_left_for_those_that_run() -> None:
    plan = schedule(chunk=256, num_blocks=6)
    _, second = *begun(plan, 100), *added(plan, 200)
    issued(plan)

    assert second.slot is None


def test_the_youngest_makes_room_and_comes_back_first() -> None:
    plan = schedule(chunk=256, num_blocks=5)
    old, young = begun(plan, 126, 60)
    waiting = added(plan, 200)[0]
    while young.slot is not None:
        taken(plan, issued(plan))

    assert old.slot is not None
    assert plan.sequences == [old, young, waiting]
    assert plan.counts().num_preempted == 1
    plan.remove(old)
    issued(plan)
    assert young.slot is not None
