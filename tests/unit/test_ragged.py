"""How texts of different lengths share the steps of an encoder's pipeline."""

from __future__ import annotations

from handlers.pipeline.ragged import LENGTH_MULTIPLE, MAX_ROWS, Shape, plan_steps


def test_each_text_is_in_one_step_that_is_long_enough():
    lengths = [n * 37 % 256 + 1 for n in range(300)]

    steps = plan_steps(lengths, num_lanes=4, longest=256)

    assert sorted(text for step in steps for text in step.texts) == list(range(300))
    for step in steps:
        assert max(lengths[text] for text in step.texts) <= step.shape.length <= 256


def test_a_step_has_a_row_for_each_text_and_less_than_a_row_too_many_per_lane():
    for num_texts in range(1, 130):
        for step in plan_steps([7] * num_texts, num_lanes=4, longest=256):
            spare = step.shape.num_rows - len(step.texts)
            assert 0 <= spare < step.shape.rows
            assert step.shape.rows <= MAX_ROWS
            assert step.shape.num_micro_batches <= 4


def test_one_text_is_one_micro_batch_of_one_row():
    (step,) = plan_steps([5], num_lanes=4, longest=256)

    assert step.shape == Shape(1, 1, LENGTH_MULTIPLE)


def test_enough_texts_fill_every_lane():
    (step,) = plan_steps([5] * 8, num_lanes=4, longest=256)

    assert step.shape == Shape(4, 2, LENGTH_MULTIPLE)


def test_a_few_texts_join_those_that_are_somewhat_longer():
    steps = plan_steps([10, 20, 20, 20, 20], num_lanes=4, longest=256)

    assert [step.shape.length for step in steps] == [2 * LENGTH_MULTIPLE]


def test_a_few_texts_do_not_join_those_that_are_far_longer():
    steps = plan_steps([10, 250, 250, 250, 250], num_lanes=4, longest=256)

    assert [step.texts for step in steps] == [(0,), (1, 2, 3, 4)]


def test_enough_texts_stay_among_themselves():
    steps = plan_steps([10] * 4 + [20] * 4, num_lanes=4, longest=256)

    assert [len(step.texts) for step in steps] == [4, 4]


def test_no_step_is_longer_than_the_model_allows():
    (step,) = plan_steps([100], num_lanes=2, longest=100)

    assert step.shape.length == 100


def test_no_texts_need_no_steps():
    assert plan_steps([], num_lanes=2, longest=100) == []
