"""The shapes both ends of a process boundary agree on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from handlers.wire import (
    MAX_EMBEDDING_INPUTS,
    BadRequest,
    Chunk,
    Failure,
    Finish,
    Frame,
    GenerationRequest,
    TokenLogprob,
    decode_frame,
    decode_object,
    encode_frame,
    join,
    parse_classification,
    parse_embedding,
    parse_generation,
)


def test_a_generation_request_survives_its_own_document() -> None:
    request = GenerationRequest(prompt="x", seed=7, stop=("end",), generated=(1, 2))

    assert parse_generation(request.to_document()) == request


def test_one_stop_string_may_be_given_without_a_list() -> None:
    assert parse_generation({"prompt": "x", "stop": "end"}).stop == ("end",)


@pytest.mark.parametrize(
    ("document", "field", "part_of_message"),
    [
        ({}, "prompt", "exactly one"),
        ({"prompt": "x", "prompt_token_ids": [1]}, "prompt", "exactly one"),
        ({"prompt": ""}, "prompt", "not be empty"),
        ({"prompt": 5}, "prompt", "text, not a number"),
        ({"prompt": None}, "prompt", "text, not null"),
        ({"prompt": "\ud800"}, "prompt", "lone surrogate"),
        ({"prompt_token_ids": []}, "prompt_token_ids", "not be empty"),
        ({"prompt_token_ids": [1, -1]}, "prompt_token_ids[1]", "allowed are 0 to"),
        ({"prompt_token_ids": [True]}, "prompt_token_ids[0]", "whole number, not a boolean"),
        ({"prompt": "x", "max_tokens": 5}, "max_tokens", "allowed are: prompt,"),
        ({"prompt": "x", "max_new_tokens": 0}, "max_new_tokens", "allowed are 1 to"),
        ({"prompt": "x", "max_new_tokens": 1.5}, "max_new_tokens", "whole number"),
        ({"prompt": "x", "temperature": -0.1}, "temperature", "allowed are 0 to 10"),
        ({"prompt": "x", "temperature": "hot"}, "temperature", "number, not a text"),
        ({"prompt": "x", "top_p": 0}, "top_p", "above 0, up to 1"),
        ({"prompt": "x", "top_k": -1}, "top_k", "allowed are 0 to"),
        ({"prompt": "x", "seed": 2**63}, "seed", "allowed are 0 to"),
        ({"prompt": "x", "stop": [""]}, "stop[0]", "not be empty"),
        ({"prompt": "x", "stop": ["a"] * 17}, "stop", "allowed are 16"),
        ({"prompt": "x", "stop": {"a": 1}}, "stop", "not an object"),
        ({"prompt": "x", "ignore_eos": 1}, "ignore_eos", "true or false"),
        ({"prompt": "x", "generated": [1, 2], "max_new_tokens": 1}, "generated", "more tokens"),
        ({"prompt": "x", "min_p": 1.5}, "min_p", "allowed are 0 to 1"),
        ({"prompt": "x", "repetition_penalty": 0}, "repetition_penalty", "above 0, up to 10"),
        ({"prompt": "x", "presence_penalty": 3}, "presence_penalty", "allowed are -2 to 2"),
        ({"prompt": "x", "frequency_penalty": -3}, "frequency_penalty", "allowed are -2 to 2"),
        ({"prompt": "x", "logit_bias": [[1, 2]]}, "logit_bias", "by token id, not a list"),
        ({"prompt": "x", "logit_bias": {"the": 1}}, "logit_bias", "'the'; allowed are token ids"),
        ({"prompt": "x", "logit_bias": {"07": 1}}, "logit_bias", "'07'; allowed are token ids"),
        ({"prompt": "x", "logit_bias": {"-1": 1}}, "logit_bias", "'-1'; allowed are token ids"),
        ({"prompt": "x", "logit_bias": {str(2**31): 1}}, "logit_bias", "allowed are token ids"),
        ({"prompt": "x", "logit_bias": {"7": 101}}, "logit_bias[7]", "allowed are -100 to 100"),
        ({"prompt": "x", "logit_bias": {"7": "a"}}, "logit_bias[7]", "number, not a text"),
        (
            {"prompt": "x", "logit_bias": {str(i): 1 for i in range(1025)}},
            "logit_bias",
            "allowed are 1024",
        ),
        ({"prompt": "x", "logprobs": 21}, "logprobs", "allowed are 0 to 20"),
        ({"prompt": "x", "logprobs": True}, "logprobs", "whole number, not a boolean"),
        ({"prompt": "x", "n": 0}, "n", "allowed are 1 to 16"),
        ({"prompt": "x", "n": 17}, "n", "allowed are 1 to 16"),
        ({"prompt": "x", "json_schema": []}, "json_schema", "JSON text, not an empty list"),
        ({"prompt": "x", "json_schema": "[1]"}, "json_schema", "not the text of a list"),
        ({"prompt": "x", "json_schema": "{"}, "json_schema", "is not JSON"),
        ({"prompt": "x", "json_schema": '{"a": NaN}'}, "json_schema", "NaN is not a JSON number"),
        ({"prompt": "x", "json_schema": {"a": float("inf")}}, "json_schema", "is not JSON"),
        ({"prompt": "x", "json_schema": {"a": "\ud800"}}, "json_schema", "lone surrogate"),
        ({"prompt": "x", "regex": ""}, "regex", "not be empty"),
        ({"prompt": "x", "regex": 1}, "regex", "text, not a number"),
        ({"prompt": "x", "regex": "a", "json_schema": {}}, "regex", "not both"),
        ({"prompt": "x", "regex": "a", "ignore_eos": True}, "ignore_eos", "false with 'regex'"),
        (
            {"prompt": "x", "json_schema": {}, "ignore_eos": True},
            "ignore_eos",
            "false with 'json_schema'",
        ),
        ({"prompt": "x", "n": 2, "generated": [1]}, "generated", "hold 2 lists"),
        ({"prompt": "x", "n": 2, "generated": [[1]]}, "generated", "hold 2 lists"),
        ({"prompt": "x", "generated": [[1], [2]]}, "generated", "hold 1 lists"),
        (
            {"prompt": "x", "n": 2, "generated": [[], [1, 2]], "max_new_tokens": 1},
            "generated",
            "more tokens",
        ),
        ({"prompt": "x", "n": 2, "generated": [[1], ["a"]]}, "generated[1][0]", "whole number"),
    ],
)
def test_a_wrong_field_is_named_with_what_is_allowed(
    document: dict[str, Any], field: str, part_of_message: str
) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_generation(document)

    assert caught.value.field == field
    assert part_of_message in caught.value.message
    assert caught.value.status == 422


@pytest.mark.parametrize("field", ["json_schema", "regex"])
def test_a_grammar_that_is_too_large_is_refused_with_413(field: str) -> None:
    value = {"title": "x" * 70_000} if field == "json_schema" else "x" * 70_000

    with pytest.raises(BadRequest, match="allowed are") as caught:
        parse_generation({"prompt": "x", field: value})

    assert (caught.value.field, caught.value.status) == (field, 413)


def test_a_schema_is_the_same_as_an_object_and_as_text_and_keeps_its_order() -> None:
    schema = {"type": "object", "properties": {"b": {}, "a": {"const": "é"}}}

    as_object = parse_generation({"prompt": "x", "json_schema": schema})
    as_text = parse_generation({"prompt": "x", "json_schema": json.dumps(schema, indent=2)})

    assert as_object == as_text
    assert as_object.json_schema == ('{"type":"object","properties":{"b":{},"a":{"const":"é"}}}')


def test_biases_are_kept_in_the_order_of_their_tokens() -> None:
    request = parse_generation({"prompt": "x", "logit_bias": {"10": 1, "9": -0.5}})

    assert request.logit_bias == ((9, -0.5), (10, 1.0))


def test_fields_that_change_nothing_leave_the_document_as_it_was_before_they_came() -> None:
    document = parse_generation({"prompt": "x", "n": 1, "min_p": 0, "logit_bias": {}}).to_document()

    assert document == {
        "prompt": "x",
        "max_new_tokens": 64,
        "temperature": 0.0,
        "top_k": 0,
        "top_p": 1.0,
        "ignore_eos": False,
    }


def test_each_answer_has_what_was_generated_of_it() -> None:
    one = parse_generation({"prompt": "x", "generated": [1, 2]})
    two = parse_generation({"prompt": "x", "n": 2, "generated": [[1, 2], [3]]})

    assert one.generated_of(0) == (1, 2)
    assert [two.generated_of(index) for index in range(2)] == [(1, 2), (3,)]
    assert two.to_document()["generated"] == [[1, 2], [3]]


def test_an_embedding_request_takes_one_text_or_several() -> None:
    assert parse_embedding({"input": "a"}).inputs == ("a",)
    assert parse_embedding({"input": ["a", "b"]}).inputs == ("a", "b")


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": ["a", 3]}, "input[1]"),
        ({"input": ["a"] * (MAX_EMBEDDING_INPUTS + 1)}, "input"),
        ({"input": "a", "prompt": "b"}, "prompt"),
    ],
)
def test_a_wrong_embedding_request_names_its_field(document: dict[str, Any], field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_embedding(document)

    assert caught.value.field == field


@pytest.mark.parametrize(
    ("body", "part_of_message"),
    [
        (b'{"a": "\xff"}', "not UTF-8: byte 0xff at position 7"),
        (b"{", "not JSON"),
        (b"", "not JSON"),
        (b"[1]", "must be a JSON object, not a list"),
        (b'"x"', "must be a JSON object, not a text"),
        (b'{"temperature": NaN}', "NaN is not a JSON number"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_body_that_is_no_object_is_refused_with_400(body: bytes, part_of_message: str) -> None:
    with pytest.raises(BadRequest, match=part_of_message) as caught:
        decode_object(body)

    assert caught.value.status == 400


@pytest.mark.parametrize(
    "frame",
    [
        Chunk((1, 2), "é\n"),
        Chunk((), "held back"),
        Chunk((1,), "a", index=3, logprobs=(TokenLogprob(-0.5, ((1, -0.5), (7, -2.0))),)),
        Finish("stop", 3, 4, reasons=("stop", "length")),
        Finish("stop", 3, 4),
        Failure(422, "too long", "prompt"),
    ],
)
def test_a_frame_survives_its_own_line(frame: Frame) -> None:
    line = encode_frame(frame)

    assert line.count("\n") == 1
    assert decode_frame(line) == frame


def test_a_line_has_no_more_than_it_needs() -> None:
    assert encode_frame(Chunk((1, 2), "a")) == '{"token_ids":[1,2],"text":"a"}\n'
    assert "reasons" not in encode_frame(Finish("eos", 1, 1))


def test_log_probabilities_that_are_not_finite_are_numbers_on_the_line() -> None:
    given = TokenLogprob(float("-inf"), ((1, float("nan")),))

    decoded = decode_frame(encode_frame(Chunk((1,), "a", logprobs=(given,))))

    assert isinstance(decoded, Chunk)
    assert decoded.logprobs == (TokenLogprob(-9999.0, ((1, -9999.0),)),)


def test_joined_chunks_have_the_tokens_of_both_in_order() -> None:
    one, two = TokenLogprob(-1.0), TokenLogprob(-2.0)

    joined = join(Chunk((1,), "a", 2, (one,)), Chunk((2,), "b", 2, (two,)))

    assert joined == Chunk((1, 2), "ab", 2, (one, two))


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        '{"text": 1}',
        '{"reason": "eos"}',
        '{"x": 1}',
        "nonsense",
        '{"text": "", "token_ids": [1], "logprobs": [1]}',
    ],
)
def test_a_line_that_is_no_frame_is_a_value_error(line: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # any words will do
        decode_frame(line)


def test_a_classification_takes_what_an_embedding_takes() -> None:
    assert parse_classification({"input": "a"}).inputs == ("a",)
    with pytest.raises(BadRequest, match="input: is missing"):
        parse_classification({})
