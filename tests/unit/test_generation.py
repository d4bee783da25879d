"""When an answer ends, and which requests a model refuses."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from handlers.pipeline.generation import Generation, Limits
from handlers.wire import BadRequest, Chunk, Finish, GenerationRequest

EOS = 0
LIMITS = Limits(max_context=16, vocabulary_size=100, eos_token_ids=frozenset([EOS, 99]))


def decode(token_ids: Sequence[int]) -> str:
    return "".join(f"<{t}>" for t in token_ids if t not in LIMITS.eos_token_ids)


def generation(prompt: Sequence[int] = (1, 2, 3), **fields: object) -> Generation:
    request = GenerationRequest(prompt_token_ids=tuple(prompt), **fields)  # type: ignore[arg-type]
    return Generation(request, prompt, LIMITS, decode)


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
    [({"prompt": [1, 100]}, "prompt_token_ids[1]"), ({"generated": (100,)}, "generated[0]")],
)
def test_a_token_outside_the_vocabulary_is_refused(fields: dict[str, object], name: str) -> None:
    with pytest.raises(BadRequest) as caught:
        generation(**fields)  # type: ignore[arg-type]

    assert caught.value.field == name
