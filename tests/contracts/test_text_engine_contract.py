"""What a generation request asks for, asked of every engine that generates text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from handlers import resumption
from handlers.wire import BadRequest, GenerationRequest
from tests.contracts.engine_subjects import SHARED_DRAWS, TEXT_ENGINES, Subject

#: Starting an engine with processes of its own takes a while on a busy machine.
pytestmark = pytest.mark.timeout(150)

GREEDY = GenerationRequest("def add(self, x", max_new_tokens=24, ignore_eos=True)
SAMPLED = replace(GREEDY, temperature=0.9, top_k=200, top_p=0.95, min_p=0.001, seed=11)
#: Says a few tokens again and again, unless something keeps it from doing so.
ECHO = replace(GREEDY, logit_bias=tuple((token_id, 9.0) for token_id in range(70, 78)))
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"size": {"enum": ["small", "large"]}, "ok": {"type": "boolean"}},
        "required": ["size", "ok"],
        "additionalProperties": False,
    }
)
#: Requests whose answers are taken up in the middle, and whether draws with noise matter.
RESUMED = {
    "greedy": GREEDY,
    "sampled": SAMPLED,
    "repetition_penalty": replace(GREEDY, repetition_penalty=1.5),
    "presence_penalty": replace(ECHO, presence_penalty=2.0),
    "frequency_penalty": replace(ECHO, frequency_penalty=0.5, temperature=0.3, seed=4),
    "logit_bias": replace(GREEDY, logit_bias=((5, 3.0), (77, -100.0))),
    "stop": replace(GREEDY, stop=("no such text in here",)),
    "logprobs": replace(GREEDY, logprobs=3),
    "regex": replace(GREEDY, regex="[a-z]{12}[0-9]{4}", ignore_eos=False),
    "json_schema": replace(GREEDY, json_schema=SCHEMA, ignore_eos=False),
}


@pytest.fixture(params=TEXT_ENGINES)
def subject(request: pytest.FixtureRequest, start_subject: Callable[[str], Subject]) -> Subject:
    return start_subject(request.param)


@pytest.mark.parametrize("case", RESUMED)
@pytest.mark.parametrize("known", [1, 9])
def test_an_answer_goes_on_from_its_tokens(subject: Subject, case: str, known: int) -> None:
    request = RESUMED[case]
    whole = subject.say(request)
    rest = replace(request, generated=whole.token_ids[:known])
    if resumption.label(request, subject.config) == resumption.NONE:
        with pytest.raises(BadRequest, match="generated"):
            subject.engine.submit("rest", rest)
        return

    said = subject.say(rest)

    assert said.finish.num_output_tokens == whole.finish.num_output_tokens
    if request.temperature == 0 or subject.name in SHARED_DRAWS:
        assert said.token_ids == whole.token_ids[known:]
        assert whole.text.endswith(said.text)


def test_an_answer_that_had_ended_only_ends(subject: Subject) -> None:
    whole = subject.say(GREEDY)

    said = subject.say(replace(GREEDY, generated=whole.token_ids))

    assert said.answers == [whole.finish]


def test_each_of_several_answers_goes_on_from_its_own_tokens(subject: Subject) -> None:
    request = replace(GREEDY, n=2, logit_bias=((5, 1.0),))
    whole = subject.say(request)
    first, second = (whole.parts[index].token_ids for index in range(2))

    said = subject.say(replace(request, generated=first[:3], other_generated=(second[:7],)))

    assert said.parts[0].token_ids == first[3:]
    assert said.parts[1].token_ids == second[7:]


def test_several_answers_are_drawn_each_for_itself(subject: Subject) -> None:
    said = subject.say(replace(SAMPLED, n=3))

    drawn = [said.parts[index].token_ids for index in range(3)]
    assert [len(token_ids) for token_ids in drawn] == [24] * 3
    assert len(set(drawn)) == 3
    assert said.finish.reasons == ("length",) * 3
    assert said.finish.num_output_tokens == 72


@pytest.mark.parametrize("name", TEXT_ENGINES)
def test_a_greedy_answer_is_the_same_with_every_engine(
    name: str, start_subject: Callable[[str], Subject]
) -> None:
    request = replace(GREEDY, max_new_tokens=60)

    said, expected = start_subject(name).say(request), start_subject("transformers").say(request)

    assert len(set(expected.token_ids)) > 20
    assert (said.token_ids, said.text) == (expected.token_ids, expected.text)


@pytest.mark.parametrize("name", SHARED_DRAWS)
@pytest.mark.parametrize(
    "changes",
    [{}, {"n": 2}, {"presence_penalty": 0.7, "repetition_penalty": 1.2}, {"regex": "[a-z]{30}"}],
    ids=str,
)
def test_a_seed_draws_the_same_tokens_with_every_engine_that_draws_so(
    name: str, changes: dict[str, object], start_subject: Callable[[str], Subject]
) -> None:
    request = replace(SAMPLED, ignore_eos="regex" not in changes, **changes)

    said, expected = start_subject(name).say(request), start_subject("transformers").say(request)

    drawn = [part.token_ids for part in said.parts.values()]
    assert sorted(drawn) == sorted(part.token_ids for part in expected.parts.values())


def test_a_seed_repeats_its_answer_and_another_one_does_not(subject: Subject) -> None:
    first, again = subject.say(SAMPLED), subject.say(SAMPLED)
    other = subject.say(replace(SAMPLED, seed=12))

    assert again.token_ids == first.token_ids
    assert other.token_ids != first.token_ids


def test_every_token_has_the_log_probabilities_asked_for(subject: Subject) -> None:
    said = subject.say(replace(GREEDY, logprobs=4))

    assert len(said.logprobs) == len(said.token_ids) == 24
    for token_id, each in zip(said.token_ids, said.logprobs, strict=True):
        likely = [logprob for _, logprob in each.top]
        assert len(likely) == 4
        assert likely == sorted(likely, reverse=True)
        assert each.top[0] == (token_id, pytest.approx(each.logprob, abs=1e-5))


def test_log_probabilities_may_be_of_the_drawn_tokens_only(subject: Subject) -> None:
    said = subject.say(replace(GREEDY, logprobs=0))

    assert all(each.logprob < 0 and each.top == () for each in said.logprobs)
    assert subject.say(GREEDY).logprobs == ()


def test_a_stop_string_over_a_tokens_border_ends_the_text_before_it(subject: Subject) -> None:
    whole = subject.say(GREEDY)
    border = len(subject.say(replace(GREEDY, max_new_tokens=10)).text)
    stop = whole.text[border - 1 : border + 1]

    said = subject.say(replace(GREEDY, stop=(stop,)))

    assert said.finish.reason == "stop"
    assert said.text == whole.text[: whole.text.index(stop)]


def test_an_answer_ends_at_the_models_own_end(subject: Subject) -> None:
    said = subject.say(replace(GREEDY, ignore_eos=False, logit_bias=((2, 100.0),)))

    assert (said.token_ids, said.text, said.finish.reason) == ((2,), "", "eos")


def test_an_answer_ends_where_the_context_does(subject: Subject) -> None:
    prompt = tuple(range(3, 3 + 1020))

    said = subject.say(GenerationRequest(prompt_token_ids=prompt, ignore_eos=True))

    assert (len(said.token_ids), said.finish.reason) == (4, "length")


def test_a_bias_forbids_a_token(subject: Subject) -> None:
    token_id = subject.say(GREEDY).token_ids[4]

    said = subject.say(replace(GREEDY, logit_bias=((token_id, -100.0),)))

    assert token_id not in said.token_ids


def test_penalties_keep_an_answer_from_repeating_itself(subject: Subject) -> None:
    echo = subject.say(ECHO)

    said = subject.say(replace(ECHO, frequency_penalty=2.0, presence_penalty=2.0))

    assert len(set(said.token_ids)) > len(set(echo.token_ids))


def test_an_answer_matches_its_schema(subject: Subject) -> None:
    request = replace(SAMPLED, json_schema=SCHEMA, ignore_eos=False, max_new_tokens=400)

    said = subject.say(request)

    assert said.finish.reason == "eos"
    assert json.loads(said.text)["size"] in ("small", "large")


def test_an_answer_matches_its_expression(subject: Subject) -> None:
    said = subject.say(replace(SAMPLED, regex="[0-9]{3}-[a-f]+x", ignore_eos=False))

    assert said.finish.reason == "eos"
    assert re.fullmatch("[0-9]{3}-[a-f]+x", said.text)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"prompt": None, "prompt_token_ids": (5, 999_999)}, "prompt_token_ids[1]"),
        ({"prompt": None, "prompt_token_ids": (5,) * 1024}, "prompt"),
        ({"generated": (999_999,)}, "generated[0]"),
        ({"json_schema": '{"type": "no such type"}', "ignore_eos": False}, "json_schema"),
        ({"regex": "[a-", "ignore_eos": False}, "regex"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_model_cannot_serve_is_refused_by_name(
    subject: Subject, changes: dict[str, object], field: str
) -> None:
    with pytest.raises(BadRequest) as refused:
        subject.engine.submit("bad", replace(GREEDY, **changes))

    assert refused.value.field == field
    assert subject.engine.take("bad") == []
