"""The shapes both ends of a process boundary agree on."""

from __future__ import annotations

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
    decode_frame,
    decode_object,
    encode_frame,
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
        Finish("stop", 3, 4),
        Failure(422, "too long", "prompt"),
    ],
)
def test_a_frame_survives_its_own_line(frame: Frame) -> None:
    line = encode_frame(frame)

    assert line.count("\n") == 1
    assert decode_frame(line) == frame


@pytest.mark.parametrize("line", ["[]", '{"text": 1}', '{"reason": "eos"}', '{"x": 1}', "nonsense"])
def test_a_line_that_is_no_frame_is_a_value_error(line: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any words will do
        decode_frame(line)
