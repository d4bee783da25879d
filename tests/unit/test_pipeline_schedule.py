"""Which rows go through the pipeline next."""

from __future__ import annotations

from handlers.pipeline.schedule import Issue, Schedule, Sequence


def schedule(lanes: int = 1, rows: int = 4, chunk: int = 8) -> Schedule:
    return Schedule(lanes, rows, chunk, cache_length=256)


def sequence(num_prompt: int, name: str = "s") -> Sequence:
    return Sequence(name, list(range(num_prompt)))


def added(to: Schedule, *lengths: int) -> list[Sequence]:
    sequences = [sequence(length, str(index)) for index, length in enumerate(lengths)]
    for each in sequences:
        to.add(each)
    return sequences


def issued(by: Schedule) -> Issue:
    issue = by.issue()
    assert issue is not None
    return issue


def shape(issue: Issue) -> list[tuple[int, int, int]]:
    return [(row.slot, row.start, row.num_tokens) for row in issue.step.rows]


def test_an_empty_schedule_has_nothing_to_issue() -> None:
    assert schedule().issue() is None


def test_a_prompt_is_computed_in_chunks_and_draws_after_the_last() -> None:
    plan = schedule(chunk=8)
    (one,) = added(plan, 20)
    sizes = []

    for drawn in (901, 902, 903):
        sizes.append(shape(issued(plan))[0])
        grown = plan.apply([drawn])

    assert sizes == [(0, 0, 8), (0, 8, 8), (0, 16, 4)]
    assert grown == [(one, 903)]


def test_a_lane_alternates_between_prefill_and_decode() -> None:
    plan = schedule(chunk=8)
    added(plan, 1)
    issued(plan)
    plan.apply([7])
    plan.add(sequence(24, "long"))
    widths = []

    for _ in range(5):
        widths.append(issued(plan).step.width)
        plan.apply([7, 7])

    assert widths == [8, 1, 8, 1, 8]


def test_short_prompts_share_a_prefill_step() -> None:
    plan = schedule(chunk=8)
    added(plan, 4, 3, 5)

    assert shape(issued(plan)) == [(0, 0, 4), (1, 0, 3)]


def test_a_step_is_no_larger_than_a_chunk() -> None:
    plan = schedule(chunk=8)
    added(plan, 3, 8, 8)

    assert shape(issued(plan)) == [(0, 0, 3)]


def test_new_sequences_go_to_the_emptiest_lane() -> None:
    plan = schedule(lanes=2, rows=2)

    slots = [each.slot for each in added(plan, 5, 5, 5, 5)]

    assert slots == [0, 2, 1, 3]


def test_every_lane_has_a_step_in_flight() -> None:
    plan = schedule(lanes=2, rows=2)
    added(plan, 5, 5)

    issued(plan)
    issued(plan)

    assert plan.issue() is None
    assert plan.num_in_flight == 2


def test_a_sequence_waits_when_all_slots_are_taken() -> None:
    plan = schedule(rows=1)
    first, second = added(plan, 5, 5)

    assert second.slot is None
    plan.remove(first)
    assert second.slot == 0


def test_a_removed_sequence_draws_no_token() -> None:
    plan = schedule()
    first, second = added(plan, 4, 4)
    issued(plan)

    plan.remove(first)

    assert plan.apply([7, 8]) == [(second, 8)]


def test_a_waiting_sequence_can_be_removed() -> None:
    plan = schedule(rows=1)
    first, second = added(plan, 5, 5)

    plan.remove(second)
    plan.remove(first)

    assert plan.issue() is None


def test_a_successor_in_a_slot_is_not_given_its_predecessors_token() -> None:
    plan = schedule(rows=1)
    first, second = added(plan, 5, 5)
    issued(plan)
    plan.remove(first)

    assert plan.apply([7]) == []
    assert shape(issued(plan)) == [(0, 0, 5)]
    assert plan.apply([9]) == [(second, 9)]


def test_a_few_gaps_are_computed_for_nothing_to_read_the_cache_in_place() -> None:
    plan = schedule(rows=3)
    sequences = added(plan, 1, 1, 1)
    issued(plan)
    plan.apply([7, 7, 7])

    plan.remove(sequences[1])

    assert shape(issued(plan)) == [(0, 1, 1), (1, 0, 0), (2, 1, 1)]


def test_scattered_rows_are_gathered() -> None:
    plan = schedule(rows=8)
    sequences = added(plan, *[1] * 8)
    issued(plan)
    plan.apply([7] * 8)

    for each in sequences[1:7]:
        plan.remove(each)

    assert shape(issued(plan)) == [(0, 1, 1), (7, 1, 1)]


def test_the_window_never_exceeds_the_cache() -> None:
    plan = Schedule(1, 1, chunk=100, cache_length=100)
    added(plan, 90)

    assert issued(plan).step.window == 100


def test_the_window_is_rounded_up() -> None:
    plan = schedule(chunk=100)
    added(plan, 65)

    assert issued(plan).step.window == 128


def test_a_resumed_sequence_computes_prompt_and_answer_alike() -> None:
    plan = schedule(chunk=8)
    resumed = Sequence("r", [1, 2, 3, 901, 902])
    plan.add(resumed)

    assert issued(plan).token_ids == ((1, 2, 3, 901, 902),)
    assert plan.apply([903]) == [(resumed, 903)]
