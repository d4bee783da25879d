"""Which rows go through the pipeline next."""

from __future__ import annotations

from collections import deque

import pytest

from handlers.pipeline import batching
from handlers.pipeline.schedule import Sequence
from handlers.pipeline.step import Draw
from tests.unit.schedules import added, begun, issued, schedule, sequence, shape_of, taken


def test_an_empty_schedule_has_nothing_to_issue() -> None:
    assert schedule().issue() is None


def test_a_prompt_is_computed_in_chunks_and_draws_after_the_last() -> None:
    plan = schedule(chunk=8)
    (one,) = added(plan, 20)

    steps = [issued(plan), issued(plan)]
    taken(plan, steps[0])
    steps.append(issued(plan))

    assert [shape_of(step)[0] for step in steps] == [(0, 0, 8), (0, 8, 8), (0, 16, 4)]
    assert [taken(plan, step) for step in steps[1:]] == [[], ["0"]]
    assert one.token_ids[20:] == [7]


def test_chunks_of_one_prompt_follow_each_other_through_the_stages() -> None:
    plan = schedule(stages=3, chunk=64)
    added(plan, 256)

    steps = [issued(plan) for _ in range(4)]

    assert [step.rows[0].start for step in steps] == [0, 64, 128, 192]


def test_prefill_and_decode_alternate() -> None:
    plan = schedule(chunk=8)
    begun(plan, 1)
    added(plan, 24)
    widths = []

    for _ in range(6):
        flying = []
        while (step := plan.issue()) is not None:
            flying.append(step)
            widths.append(step.width)
        for step in flying:
            taken(plan, step)

    assert widths[:6] == [8, 1, 8, 1, 8, 1]


def test_a_prompt_gets_on_even_when_steps_go_one_at_a_time() -> None:
    plan = schedule(chunk=8)
    begun(plan, 1, 1)
    added(plan, 24)
    widths = []

    for _ in range(6):
        step = issued(plan)
        widths.append(step.width)
        taken(plan, step)

    assert widths == [8, 1, 8, 1, 8, 1]


@pytest.mark.parametrize("num_tokens", [0, 257])
def test_a_sequence_that_does_not_fit_is_refused(num_tokens: int) -> None:
    with pytest.raises(ValueError, match="1 to 256"):
        schedule().add(sequence(num_tokens))


def test_who_comes_next_to_others_is_read_in_place_with_them() -> None:
    plan = schedule(rows=8, has_prefix_cache=True)
    sequences = begun(plan, *[1] * 8)
    for each in sequences[:4] + sequences[6:]:
        plan.remove(each)

    begun(plan, 1, 1)

    assert sorted(each.slot or 0 for each in plan.sequences) in (
        [3, 4, 5, 6],
        [2, 3, 4, 5],
        [4, 5, 6, 7],
    )


def test_short_prompts_share_a_prefill_step() -> None:
    plan = schedule(chunk=8)
    added(plan, 4, 3, 5)

    assert shape_of(issued(plan)) == [(0, 0, 4), (1, 0, 3)]


def test_a_step_is_no_larger_than_a_chunk() -> None:
    plan = schedule(chunk=8)
    added(plan, 3, 8, 8)

    assert shape_of(issued(plan)) == [(0, 0, 3)]


def test_those_that_decode_are_cut_into_lanes_of_neighbours() -> None:
    plan = schedule(stages=2, rows=6)
    begun(plan, 1, 1, 1, 1, 1, 1)

    steps = [issued(plan), issued(plan)]

    assert [[row.slot for row in step.rows] for step in steps] == [[0, 1, 2], [3, 4, 5]]
    assert plan.issue() is None
    assert plan.num_in_flight == 2


def test_lanes_are_even_again_after_some_have_ended() -> None:
    plan = schedule(stages=2, rows=6)
    sequences = begun(plan, 1, 1, 1, 1, 1, 1)
    for each in sequences[1:3]:
        plan.remove(each)

    steps = [issued(plan), issued(plan)]

    assert [len(step.rows) for step in steps] == [2, 2]


def test_a_fixed_number_of_lanes_is_kept() -> None:
    plan = schedule(stages=2, rows=6, lanes=3)
    begun(plan, 1, 1, 1, 1, 1, 1)

    assert [len(issued(plan).rows) for _ in range(3)] == [2, 2, 2]
    assert plan.issue() is None


def test_a_sequence_waits_when_all_slots_are_taken() -> None:
    plan = schedule(rows=1)
    first, second = added(plan, 5, 5)
    issued(plan)

    assert second.slot is None
    plan.remove(first)
    issued(plan)
    assert second.slot == 0


def test_a_removed_sequence_draws_no_token() -> None:
    plan = schedule()
    first, _ = added(plan, 4, 4)
    step = issued(plan)

    plan.remove(first)

    assert taken(plan, step) == ["1"]


def test_a_waiting_sequence_can_be_removed() -> None:
    plan = schedule(rows=1)
    first, second = added(plan, 5, 5)

    plan.remove(second)
    plan.remove(first)

    assert plan.issue() is None
    assert plan.sequences == []


def test_a_successor_in_a_slot_is_not_given_its_predecessors_token() -> None:
    plan = schedule(rows=1)
    first, _ = added(plan, 5, 5)
    before = issued(plan)
    plan.remove(first)
    after = issued(plan)

    assert shape_of(after) == [(0, 0, 5)]
    assert taken(plan, before) == []
    assert taken(plan, after) == ["1"]


def test_one_removed_and_added_again_starts_anew() -> None:
    plan = schedule()
    (one,) = added(plan, 5)
    before = issued(plan)
    plan.remove(one)
    plan.add(one)
    after = issued(plan)

    assert taken(plan, before) == []
    assert shape_of(after) == [(0, 0, 5)]
    assert [opened.slot for opened in after.opens] == [0]


def test_a_few_gaps_are_computed_for_nothing_to_read_the_cache_in_place() -> None:
    plan = schedule(rows=4)
    sequences = begun(plan, 1, 1, 1, 1)
    plan.remove(sequences[1])

    assert [(row.slot, row.num_tokens) for row in issued(plan).rows] == [
        (0, 1), (1, 0), (2, 1), (3, 1),
    ]  # fmt: skip


def test_rows_at_equal_distances_need_no_gaps_filled() -> None:
    plan = schedule(rows=5)
    sequences = begun(plan, 1, 1, 1, 1, 1)
    plan.remove(sequences[1])
    plan.remove(sequences[3])

    assert [row.slot for row in issued(plan).rows] == [0, 2, 4]


def test_scattered_rows_are_gathered() -> None:
    plan = schedule(rows=8)
    sequences = begun(plan, *[1] * 8)
    for each in (*sequences[1:5], sequences[6]):
        plan.remove(each)

    assert [row.slot for row in issued(plan).rows] == [0, 5, 7]


def test_the_window_is_rounded_up_to_blocks() -> None:
    plan = schedule(chunk=100)
    added(plan, 65)

    assert issued(plan).window == 128


def test_a_resumed_sequence_computes_prompt_and_answer_alike() -> None:
    plan = schedule(chunk=8)
    plan.add(Sequence("r", 0, [1, 2, 3, 901, 902], 3))
    step = issued(plan)

    assert step.token_ids == ((1, 2, 3, 901, 902),)
    assert step.opens[0].prompt_token_ids == (1, 2, 3)
    assert step.opens[0].generated == (901, 902)
    assert taken(plan, step) == ["r"]


def test_a_sequence_is_opened_with_its_first_step_only() -> None:
    plan = schedule(chunk=8)
    added(plan, 20)

    assert [len(issued(plan).opens) for _ in range(2)] == [1, 0]


def test_a_draw_with_a_fault_stops_its_sequence_only() -> None:
    plan = schedule()
    bad, good = begun(plan, 1, 1)
    step = issued(plan)

    grown = plan.apply(step.number, [Draw(-1, fault="logits are not finite"), Draw(5)])

    assert [each for each, _ in grown] == [bad, good]
    assert [len(each.token_ids) for each in (bad, good)] == [2, 3]
    assert [row.slot for row in issued(plan).rows] == [good.slot]


def test_one_with_a_fault_keeps_no_prompt_waiting() -> None:
    plan = schedule()
    begun(plan, 1)
    step = issued(plan)
    plan.apply(step.number, [Draw(-1, fault="logits are not finite")])
    added(plan, 24)

    assert [taken(plan, issued(plan)) for _ in range(3)] == [[], [], ["0"]]


def test_after_a_reset_all_start_anew_and_late_results_change_nothing() -> None:
    plan = schedule()
    sequences = begun(plan, 3, 4)
    late = issued(plan)

    plan.reset()

    assert plan.num_in_flight == 0
    assert taken(plan, late) == []
    assert shape_of(issued(plan)) == [(0, 0, 4)]
    assert plan.sequences == sequences


def test_a_parked_schedule_issues_nothing_until_the_reset() -> None:
    plan = schedule()
    begun(plan, 3)
    step = issued(plan)
    plan.park()

    assert taken(plan, step) == ["0"]
    assert plan.issue() is None
    plan.reset()
    assert plan.issue() is not None


def test_a_suspect_runs_alone_until_it_has_grown() -> None:
    plan = schedule(stages=2)
    begun(plan, 1, 1)
    plan.reset()
    suspect = plan.sequences[1]
    suspect.suspect_until = len(suspect.token_ids)

    step = issued(plan)

    assert [row.slot for row in step.rows] == [suspect.slot]
    assert plan.issue() is None
    assert taken(plan, step) == ["1"]
    assert {row.slot for row in issued(plan).rows} | {row.slot for row in issued(plan).rows} == {
        0,
        1,
    }


def test_a_suspect_waits_for_the_steps_in_flight() -> None:
    plan = schedule(stages=2)
    begun(plan, 1)
    step = issued(plan)
    (suspect,) = added(plan, 20)
    suspect.suspect_until = 20

    assert plan.issue() is None
    taken(plan, step)
    assert [row.slot for row in issued(plan).rows] == [suspect.slot]


def test_a_suspect_takes_a_slot_when_all_are_taken() -> None:
    plan = schedule(rows=2)
    old, young = begun(plan, 1, 1)
    (suspect,) = added(plan, 20)
    suspect.suspect_until = 20

    issued(plan)

    assert [each.slot for each in (old, young, suspect)] == [0, None, 1]


def test_those_in_flight_are_named_once() -> None:
    plan = schedule(stages=3, chunk=64)
    (one,) = added(plan, 256)
    issued(plan)
    issued(plan)

    assert plan.in_flight == [one]


def test_of_the_lanes_the_fullest_goes_first_but_for_one_that_waited_too_long() -> None:
    sequences = [sequence(1) for _ in range(4)]
    for slot, each in enumerate(sequences):
        each.slot, each.last_issue = slot, 9
    sequences[0].num_cached = 1
    sequences[1].last_issue = 3

    assert batching.lane_of(sequences, 2, oldest_issue=3) == sequences[2:]
    assert batching.lane_of(sequences, 2, oldest_issue=4) == sequences[1:2]


def test_nobody_starves_beside_answers_of_one_token_that_come_without_end() -> None:
    plan = schedule(stages=4, rows=6)
    begun(plan, 1, 1, 1)
    flying = deque(issued(plan) for _ in range(3))
    one, *_ = added(plan, 1, 1, 1)

    for _ in range(60):
        while (step := plan.issue()) is not None:
            flying.append(step)
        slots = [row.slot for row in flying[0].rows]
        taken(plan, flying.popleft())
        for each in [each for each in plan.sequences if each.slot in slots and each is not one]:
            plan.remove(each)
            added(plan, 1)

    assert len(one.token_ids) > 5
