"""When an answer ends, and which requests a model refuses."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from handlers.pipeline.generation import Completion, Generation, Limits
from handlers.pipeline.step import Draw
from handlers.wire import BadRequest, Chunk, Finish, GenerationRequest, TokenLogprob

EOS = 0
LIMITS = Limits(max_context=16, vocabulary_size=100, eos_token_ids=frozenset([EOS, 99]))


def decode(token_ids: Sequence[int]) -> str:
    return "".join(f"<{t}>" for t in token_ids if t not in LIMITS.eos_token_ids)


def generation(prompt: Sequence[int] = (1, 2, 3), **fields: object) -> Generation:
    request = GenerationRequest(prompt_token_ids=tuple(prompt), **fields)
    return Generation(request, prompt, LIMITS, decode)


def completion(**fields: object) -> Completion:
    request = GenerationRequest(prompt_token_ids=(1, 2, 3), **fields)
    return Completion(request, (1, 2, 3), LIMITS, decode)


def test_the_token_that_reaches_max_new_tokens_ends_the_answer() -> None:
    answer = generation(max_new_tokens=2)

    assert answer.add(7) == Chunk((7,), "<7>")
    assert answer.finish is None
    answer.add(8)
    assert answer.finish == Finish("length", 3, 2)


@pytest.mark.parametrize("eos", [EOS, 99])
def test_any_end_token_ends_the_answer_and_belongs_to_it(eos: int) -> None:
    answer = generation()

    assert answer.add(eos) == Chunk((eos,), "")
    assert answer.finish == Finish("eos", 3, 1)


def test_an_ignored_end_token_ends_nothing() -> None:
    answer = generation(ignore_eos=True)

    answer.add(EOS)

    assert answer.finish is None


def test_a_stop_string_ends_the_answer_before_it() -> None:
    answer = generation(stop=("><8",))

    assert answer.add(7).text == "<7"
    assert answer.add(8).text == ""
    assert answer.finish == Finish("stop", 3, 2)


def test_a_full_context_ends_the_answer() -> None:
    answer = generation(prompt=range(1, 15), max_new_tokens=50)

    answer.add(7)
    answer.add(7)

    assert answer.finish == Finish("length", 14, 2)


def test_what_an_earlier_attempt_generated_counts() -> None:
    answer = generation(max_new_tokens=3, generated=(7, 8))

    answer.add(9)

    assert answer.finish == Finish("length", 3, 3)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"generated": (7, EOS)}, "eos"),
        ({"generated": (7, 8), "max_new_tokens": 2}, "length"),
        ({"generated": (7, 8), "stop": ("<8>",)}, "stop"),
        ({"generated": (7,) * 13, "max_new_tokens": 50}, "length"),
    ],
)
def test_an_attempt_that_finds_the_answer_complete_only_finishes_it(
    fields: dict[str, object], reason: str
) -> None:
    finish = generation(**fields).finish

    assert finish is not None
    assert finish.reason == reason


def test_tokens_after_the_end_are_refused() -> None:
    with pytest.raises(BadRequest, match="goes on after token 1"):
        generation(generated=(EOS, 7))


def test_a_prompt_that_leaves_no_room_for_a_token_is_refused() -> None:
    with pytest.raises(BadRequest, match="does not fit the context of 16"):
        generation(prompt=[1] * 16)


def test_a_prompt_that_leaves_room_for_one_token_is_taken() -> None:
    answer = generation(prompt=[1] * 15)

    answer.add(7)

    assert answer.finish == Finish("length", 15, 1)


def test_prompt_and_generated_beyond_the_context_are_refused() -> None:
    with pytest.raises(BadRequest, match="does not fit the context"):
        generation(generated=(7,) * 14)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"prompt": [1, 100]}, "prompt_token_ids[1]"),
        ({"generated": (100,)}, "generated[0]"),
        ({"logit_bias": ((7, 1.0), (100, 1.0))}, "logit_bias[100]"),
    ],
)
def test_a_token_outside_the_vocabulary_is_refused(fields: dict[str, object], name: str) -> None:
    with pytest.raises(BadRequest) as caught:
        generation(**fields)

    assert caught.value.field == name


def test_a_chunk_says_which_answer_goes_on_and_how_likely_its_token_was() -> None:
    answers = completion(n=2, logprobs=1)

    sent = answers.add(1, Draw(7, -0.5, ((7, -0.5),)))

    assert sent == [Chunk((7,), "<7>", 1, (TokenLogprob(-0.5, ((7, -0.5),)),))]


def test_log_probabilities_that_were_not_asked_for_are_not_sent() -> None:
    assert completion().add(0, Draw(7)) == [Chunk((7,), "<7>")]


def test_a_request_ends_with_its_last_answer() -> None:
    answers = completion(n=2, max_new_tokens=2)

    assert answers.add(1, Draw(EOS)) == [Chunk((EOS,), "", 1)]
    assert answers.has_ended(1)
    assert not answers.has_ended(0)
    answers.add(0, Draw(7))
    assert answers.add(0, Draw(8))[1:] == [Finish("length", 3, 3, ("length", "eos"))]


def test_the_finish_of_a_single_answer_is_its_own() -> None:
    assert completion(max_new_tokens=1).add(0, Draw(7))[1:] == [Finish("length", 3, 1)]


def test_each_answer_goes_on_after_its_own_tokens() -> None:
    answers = completion(n=3, max_new_tokens=2, generated=(7,), other_generated=((), (7, 8)))

    assert [answers.has_ended(index) for index in range(3)] == [False, False, True]
    assert answers.add(0, Draw(9))[0] == Chunk((9,), "<9>", 0)
    answers.add(1, Draw(9))
    assert answers.add(1, Draw(9))[1:] == [Finish("length", 3, 6, ("length",) * 3)]


def test_an_attempt_that_finds_all_answers_complete_has_its_finish_at_once() -> None:
    answers = completion(n=2, generated=(EOS,), other_generated=((7, 99),))

    assert answers.finish == Finish("eos", 3, 3, ("eos", "eos"))


def test_a_token_of_a_further_answer_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(BadRequest, match="the vocabulary has 0 to 99"):
        completion(n=2, other_generated=((100,),))
