"""Decides what the bytes of a prediction mean: a JSON request, or a text that is the prompt.

JSON is what says it is JSON. Without a content type, or with the one that ``curl -d`` adds unasked,
a body that is a JSON object counts as JSON too. Everything else is UTF-8 text: the prompt, with
default parameters, as TorchServe's users send it. It does not look at the model's fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import parse_qs

from handlers.wire import BadRequest, decode_object
from scheduler.errors import InvalidRequest
from scheduler.gateway.submission import Options, refusal, split

#: Name of the form field that holds the prompt, as TorchServe has it.
FORM_FIELD: Final = "data"
URLENCODED: Final = "application/x-www-form-urlencoded"
MULTIPART: Final = "multipart/form-data"


@dataclass(frozen=True, slots=True)
class Prediction:
    """One request of a client that waits for the answer on the same connection."""

    document: Mapping[str, Any]
    options: Options
    #: Whether the prompt came as bare text, so that the answer is bare text too.
    is_text: bool

    def with_stream(self, is_stream: bool | None) -> Prediction:
        """The same, streamed or not; None leaves it as it is."""
        if is_stream is None:
            return self
        return replace(self, options=replace(self.options, stream=is_stream))

    def with_class(self, priority_class: str | None) -> Prediction:
        """The same in a class; None leaves it as it is."""
        if priority_class is None:
            return self
        return replace(self, options=replace(self.options, priority_class=priority_class))

    def with_key(self, key: str | None) -> Prediction:
        """The same under an idempotency key; None leaves it as it is."""
        if key is None:
            return self
        if self.options.idempotency_key not in (None, key):
            message = "differs between the header Idempotency-Key and the body"
            raise InvalidRequest(f"idempotency_key: {message}", field="idempotency_key")
        return replace(self, options=replace(self.options, idempotency_key=key))


def read(content_type: str | None, charset: str | None, body: bytes, task: str) -> Prediction:
    """What a body of this content type asks for; ``task`` is the kind of task the model does.

    Raises:
        InvalidRequest: it is not what its type says (400), or the type is not taken (415).
    """
    if (charset or "utf-8").lower() not in ("utf-8", "utf8", "us-ascii", "ascii"):
        message = f"Content-Type: charset {charset!r:.40} is not taken; send UTF-8"
        raise InvalidRequest(message, field="Content-Type", status=415)
    if content_type is None:
        return _json_or_text(body, task)
    if is_json(content_type):
        return from_json(body)
    if content_type == URLENCODED:
        return _urlencoded(body, task)
    if content_type == "application/octet-stream" or content_type.startswith("text/"):
        return from_text(body, task)
    raise unsupported(content_type)


def unsupported(content_type: str) -> InvalidRequest:
    """The refusal of a content type."""
    allowed = f"application/json, text/plain, application/octet-stream, {URLENCODED}, {MULTIPART}"
    message = f"Content-Type: {content_type!r} is not taken; allowed are {allowed}"
    return InvalidRequest(message, field="Content-Type", status=415)


def is_json(content_type: str) -> bool:
    return content_type == "application/json" or content_type.endswith("+json")


def from_json(body: bytes) -> Prediction:
    """A flat JSON request: the handler's document and the gateway's options in one object."""
    document, options = split(json_object(body))
    return Prediction(document, options, is_text=False)


def json_object(body: bytes) -> dict[str, Any]:
    """The JSON object a body is.

    Raises:
        InvalidRequest: it is none (400); the field is "body".
    """
    try:
        return decode_object(body)
    except BadRequest as error:
        raise refusal(error) from None


def from_text(body: bytes, task: str) -> Prediction:
    """A bare prompt, or the one text to embed."""
    field = "prompt" if task == "generate" else "input"
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"byte 0x{body[error.start]:02x} at position {error.start}"
        message = f"{field}: the text is not UTF-8: {found}"
        raise InvalidRequest(message, field=field, status=400) from None
    return Prediction({field: text}, Options(), is_text=True)


def from_bytes(body: bytes, task: str) -> Prediction:
    """What bytes without a type mean: JSON when they are a JSON object, else a prompt."""
    return _json_or_text(body, task)


def _json_or_text(body: bytes, task: str) -> Prediction:
    if not body.lstrip().startswith(b"{"):
        return from_text(body, task)
    try:
        document = decode_object(body)
    except BadRequest:
        # Source code may begin with a brace as well; a prompt is what it then is.
        return from_text(body, task)
    fields, options = split(document)
    return Prediction(fields, options, is_text=False)


def _urlencoded(body: bytes, task: str) -> Prediction:
    if body.lstrip().startswith(b"{"):
        return from_json(body)
    try:
        form = parse_qs(body.decode("ascii"), keep_blank_values=True, max_num_fields=100)
    except ValueError:
        form = {}
    if FORM_FIELD not in form:
        message = f"is missing in the form; send {FORM_FIELD}=<prompt>, or text/plain, or JSON"
        raise InvalidRequest(f"{FORM_FIELD}: {message}", field=FORM_FIELD)
    # Undecodable bytes came through as surrogates or replacements; both are refused as text.
    return from_text(_raw_value(body), task)


def _raw_value(body: bytes) -> bytes:
    form = parse_qs(body.decode("ascii"), keep_blank_values=True, encoding="latin-1")
    return form[FORM_FIELD][0].encode("latin-1")
