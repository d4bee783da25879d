"""What the bytes of a prediction mean."""

from __future__ import annotations

import pytest

from scheduler.errors import InvalidRequest
from scheduler.gateway.bodies import URLENCODED, read

JSON_BODY = b'{"prompt": "p", "stream": true}'


@pytest.mark.parametrize("content_type", ["application/json", "application/vnd.x+json", None])
def test_json_is_a_document_with_options(content_type: str | None) -> None:
    prediction = read(content_type, None, JSON_BODY, "generate")

    assert prediction.document == {"prompt": "p"}
    assert prediction.options.stream
    assert not prediction.is_text


@pytest.mark.parametrize("content_type", ["text/plain", "application/octet-stream"])
def test_text_is_the_prompt_even_if_it_looks_like_json(content_type: str) -> None:
    prediction = read(content_type, None, JSON_BODY, "generate")

    assert prediction.document == {"prompt": JSON_BODY.decode()}
    assert prediction.is_text


@pytest.mark.parametrize("body", [b"{x}", b'{"a": ', b"[1]", b"def f(): {}"])
def test_without_a_type_what_is_no_object_is_the_prompt(body: bytes) -> None:
    assert read(None, None, body, "generate").document == {"prompt": body.decode()}


def test_a_text_for_an_encoder_is_its_input() -> None:
    assert read("text/plain", None, b"t", "embed").document == {"input": "t"}


def test_a_form_gives_its_data_field() -> None:
    prediction = read(URLENCODED, None, b"x=1&data=a%C3%A4+b", "generate")

    assert prediction.document == {"prompt": "aä b"}


def test_two_different_keys_are_refused() -> None:
    prediction = read(None, None, b'{"prompt": "p", "idempotency_key": "a"}', "generate")

    assert prediction.with_key(None) == prediction.with_key("a") == prediction
    with pytest.raises(InvalidRequest) as caught:
        prediction.with_key("b")
    assert caught.value.field == "idempotency_key"
