"""Prefixes that are found instead of computed, and the blocks they are in."""

from __future__ import annotations

from handlers.pipeline import prefix_cache
from handlers.pipeline.blocks import Home, Paged, Place
from handlers.pipeline.lanes import LaneModel
from handlers.pipeline.prefix_cache import Contents
from handlers.pipeline.schedule import Schedule, Sequence, Shape
from handlers.pipeline.step import BLOCK, Draw, Sampling, Step

TEXT = [token % 97 for token in range(300)]


def keys_of(token_ids: list[int]) -> list[bytes]:
    keys: list[bytes] = []
    prefix_cache.extend(keys, token_ids, len(token_ids))
    return keys


def paged(num_blocks: int = 8) -> Paged:
    return Paged(4, num_blocks, unit=1, finds=True)


def home() -> Home:
    return Home(4, unit=1, finds=True)


def filled(blocks: Home | Paged, slot: int, token_ids: list[int]) -> None:
    """The slot admits and computes the tokens, whatever is found."""
    keys = keys_of(token_ids)
    place = blocks.admit([], len(token_ids), [slot], 0)
    assert place == Place(slot, 0)
    blocks.flush()
    blocks.write(slot, 0, len(token_ids), keys)


def test_a_key_depends_on_all_tokens_before() -> None:
    one, other = keys_of(TEXT[:128]), keys_of([0, 0, *TEXT[2:128]])

    assert len(one) == 2
    assert one[1] != other[1]


def test_only_full_blocks_have_keys() -> None:
    assert len(keys_of(TEXT[:127])) == 1


def test_contents_are_found_up_to_the_first_that_is_missing() -> None:
    contents, keys = Contents(), keys_of(TEXT)
    for block in (0, 1, 3):
        contents.learn(block, keys[block])

    assert contents.num_found(keys) == 2


def test_a_home_finds_what_it_held_in_place() -> None:
    blocks = home()
    filled(blocks, 2, TEXT[:200])
    blocks.release(2, keeps=True)

    assert blocks.admit(keys_of(TEXT[:128]), 150, [0, 1, 2, 3], 0) == Place(2, 2)
    assert blocks.flush().copies == ()


def test_a_home_copies_what_another_holds() -> None:
    blocks = home()
    filled(blocks, 2, TEXT[:200])

    assert blocks.admit(keys_of(TEXT[:128]), 150, [1, 3], 0) == Place(1, 2)
    assert blocks.flush().copies == ((8, 4), (9, 5))


def test_what_is_about_to_be_copied_over_is_not_found() -> None:
    blocks, other = home(), [7] * 200
    filled(blocks, 2, TEXT[:200])
    filled(blocks, 1, other)
    blocks.release(1, keeps=True)
    blocks.admit(keys_of(TEXT[:128]), 150, [1], 0)

    assert blocks.admit(keys_of(other[:64]), 150, [3], 0) == Place(3, 0)


def test_a_copy_is_not_the_source_of_a_copy_in_the_same_step() -> None:
    blocks = home()
    filled(blocks, 2, TEXT[:200])
    blocks.admit(keys_of(TEXT[:64]), 150, [1], 0)
    blocks.admit(keys_of(TEXT[:64]), 150, [3], 0)

    assert blocks.flush().copies == ((8, 4), (8, 12))


def test_copies_of_one_who_left_before_the_step_are_not_made() -> None:
    blocks = home()
    filled(blocks, 2, TEXT[:200])
    blocks.admit(keys_of(TEXT[:64]), 150, [1], 0)
    blocks.release(1, keeps=True)

    assert blocks.flush().copies == ()


def test_what_is_overwritten_in_a_home_is_not_found() -> None:
    blocks = home()
    filled(blocks, 2, TEXT[:200])
    blocks.release(2, keeps=True)
    filled(blocks, 2, [7] * 10)

    assert blocks.num_found(keys_of(TEXT)) == 0


def test_pages_are_shared_by_those_with_the_same_prefix() -> None:
    blocks = paged()
    filled(blocks, 0, TEXT[:200])

    assert blocks.admit(keys_of(TEXT[:128]), 150, [1], 0) == Place(1, 2)
    assert blocks.flush().tables == ((1, 0, 0), (1, 1, 1), (1, 2, 4))
    assert blocks.num_used == 5


def test_a_shared_page_is_free_when_nobody_uses_it() -> None:
    blocks = paged()
    filled(blocks, 0, TEXT[:128])
    blocks.admit(keys_of(TEXT[:128]), 129, [1], 0)

    blocks.release(0, keeps=True)
    assert (blocks.num_used, blocks.num_cached) == (3, 0)
    blocks.release(1, keeps=True)
    assert (blocks.num_used, blocks.num_cached) == (0, 2)


def test_the_longest_unused_page_is_given_away_first_and_leaves_before_what_they_follow() -> None:
    blocks = paged(num_blocks=4)
    filled(blocks, 0, TEXT[:128])
    filled(blocks, 1, [7] * 128)
    blocks.release(0, keeps=True)
    blocks.release(1, keeps=True)

    blocks.admit([], 64, [2], 0)
    assert blocks.num_found(keys_of(TEXT)) == 1
    blocks.admit([], 64, [3], 0)
    assert blocks.num_found(keys_of(TEXT)) == 0
    assert blocks.num_found(keys_of([7] * 128)) == 2


def test_what_was_given_away_is_not_found_by_who_needs_its_room() -> None:
    blocks = paged(num_blocks=3)
    filled(blocks, 0, TEXT[:128])
    blocks.release(0, keeps=True)

    assert blocks.admit(keys_of(TEXT[:128]), 4 * BLOCK, [1], 0) is None
    assert blocks.admit(keys_of(TEXT[:128]), 3 * BLOCK, [1], 0) == Place(1, 2)


def test_what_a_fault_may_have_spoilt_is_not_found() -> None:
    for blocks in (paged(), home()):
        filled(blocks, 0, TEXT[:128])
        blocks.release(0, keeps=False)

        assert blocks.num_found(keys_of(TEXT)) == 0


def schedule(**how: object) -> Schedule:
    shape = {"num_stages": 1, "max_rows": 4, "prefill_chunk": 128, "max_context": 512}
    shape |= {"num_blocks": 32} | how
    return Schedule(Shape(**shape), LaneModel(1))


def asked(of: Schedule, token_ids: list[int], num_answers: int = 1) -> list[Sequence]:
    sequences = [
        Sequence("r", index, list(token_ids), len(token_ids), Sampling(index=index))
        for index in range(num_answers)
    ]
    for each in sequences:
        of.add(each)
    return sequences


def finish(plan: Schedule, *sequences: Sequence) -> list[Step]:
    """Go on until each has a token; all are removed then."""
    steps = []
    while any(len(each.token_ids) == each.num_prompt for each in sequences):
        step = plan.issue()
        assert step is not None
        steps.append(step)
        plan.apply(step.number, [Draw(7) if row.is_drawn else None for row in step.rows])
    for each in sequences:
        plan.remove(each)
    return steps


def test_a_prompt_asked_again_is_found_but_for_its_last_block() -> None:
    plan = schedule()
    finish(plan, *asked(plan, TEXT[:128]))

    (step,) = finish(plan, *asked(plan, TEXT[:128]))

    assert [(row.start, row.num_tokens) for row in step.rows] == [(64, 64)]
    assert plan.counts().num_tokens_saved == 64


def test_an_answer_is_found_by_who_goes_on_from_it() -> None:
    plan = schedule()
    (one,) = asked(plan, TEXT[:127])
    finish(plan, *asked(plan, [1]))
    while len(one.token_ids) < 130:
        step = plan.issue()
        assert step is not None
        plan.apply(step.number, [Draw(7) if row.is_drawn else None for row in step.rows])
    plan.remove(one)

    (step,) = finish(plan, *asked(plan, [*one.token_ids, 1, 2, 3]))

    assert step.rows[0].start == 128


def test_without_a_cache_nothing_is_found() -> None:
    plan = schedule(has_prefix_cache=False)
    finish(plan, *asked(plan, TEXT[:100]))

    (step,) = finish(plan, *asked(plan, TEXT[:100]))

    assert step.rows[0].start == 0


def test_of_several_answers_only_the_first_computes_the_prompt() -> None:
    for num_blocks in (32, 20):
        plan = schedule(num_blocks=num_blocks)

        steps = finish(plan, *asked(plan, TEXT[:290], num_answers=4))

        computed = sum(row.num_tokens for step in steps for row in step.rows)
        assert computed <= 290 + 3 * (290 - 256) + 4 * 10
        assert plan.counts().num_tokens_saved == 3 * 256


def test_others_do_not_wait_for_those_who_wait_for_a_prefix() -> None:
    plan = schedule()
    asked(plan, TEXT[:290], num_answers=2)
    (other,) = asked(plan, [5] * 10)

    plan.issue()

    assert [each.slot is None for each in plan.sequences] == [False, True, False]
    assert other.slot is not None


def test_the_slot_of_one_who_waits_for_a_prefix_is_kept() -> None:
    plan = schedule(max_rows=2)
    asked(plan, TEXT[:290], num_answers=2)
    (other,) = asked(plan, [5] * 10)

    plan.issue()
    assert other.slot is None
    while plan.issue() is not None:
        pass
    assert [each.slot is None for each in plan.sequences] == [False, False, True]


def test_after_a_reset_nothing_is_found() -> None:
    plan = schedule()
    finish(plan, *asked(plan, TEXT[:128]))
    plan.reset()

    steps = finish(plan, *asked(plan, TEXT[:128]))

    assert steps[0].rows[0].start == 0


def test_in_exact_mode_only_whole_chunks_of_prompts_are_found() -> None:
    plan = schedule(is_exact=True)
    (one,) = asked(plan, TEXT[:250])
    finish(plan, one)

    (step,) = finish(plan, *asked(plan, TEXT[:200]))

    assert [(row.start, row.num_tokens) for row in step.rows] == [(128, 72)]


def test_in_exact_mode_no_answer_is_found() -> None:
    plan = schedule(is_exact=True)
    (one,) = asked(plan, TEXT[:100])
    while len(one.token_ids) < 140:
        step = plan.issue()
        assert step is not None
        plan.apply(step.number, [Draw(7) if row.is_drawn else None for row in step.rows])
    plan.remove(one)

    steps = finish(plan, *asked(plan, [*one.token_ids, 1]))

    assert steps[0].rows[0].start == 0
