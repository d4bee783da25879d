"""Any bytes a client may send are understood in one way, or refused with a reason."""

from __future__ import annotations

from urllib.parse import urlencode

from hypothesis import given
from hypothesis import strategies as st

from scheduler.errors import InvalidRequest
from scheduler.gateway.bodies import URLENCODED, Prediction, from_bytes, read


@given(st.text(min_size=1))
def test_a_form_keeps_every_text(text: str) -> None:
    body = urlencode({"data": text}).encode()

    assert read(URLENCODED, None, body, "generate").document == {"prompt": text}


@given(st.binary(), st.sampled_from([None, "text/plain", "application/json", URLENCODED]))
def test_any_bytes_are_understood_or_refused(body: bytes, content_type: str | None) -> None:
    outcome: Prediction | InvalidRequest
    try:
        outcome = read(content_type, None, body, "generate")
    except InvalidRequest as error:
        outcome = error

    if isinstance(outcome, InvalidRequest):
        assert outcome.field
        assert 400 <= outcome.status < 500


@given(st.text())
def test_bytes_without_a_type_that_are_no_json_are_the_text(text: str) -> None:
    body = ("~" + text).encode()

    assert from_bytes(body, "generate").document == {"prompt": "~" + text}
