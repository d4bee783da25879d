"""Reads single fields of a request: each reader takes a name and a JSON value and returns the value
in its one right form, or raises :class:`BadRequest`, which names the field and what is allowed.

Readers may be given what they returned before, so a request survives being written down and read
again. They know single fields only; what relates two of them is ``wire``'s to check.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

#: Longest prompt taken, in bytes of UTF-8; a ceiling for memory, not for the model.
MAX_PROMPT_BYTES: Final = 4 * 1024 * 1024
#: Most tokens one request may ask for; a model's own context is usually the tighter bound.
MAX_NEW_TOKENS: Final = 1_000_000
#: Most stop strings, and the longest of them in characters.
MAX_STOP_STRINGS: Final = 16
MAX_STOP_CHARS: Final = 256
#: Most tokens one request may bias, and by how much.
MAX_BIASED_TOKENS: Final = 1024
MAX_BIAS: Final = 100.0
#: Longest JSON schema and regular expression, in bytes of UTF-8: a grammar is compiled from them.
MAX_SCHEMA_BYTES: Final = 64 * 1024
MAX_REGEX_BYTES: Final = 8 * 1024
MAX_SEED: Final = 2**63 - 1
MAX_TOKEN_ID: Final = 2**31 - 1

#: Returns a field's value in its right form.
Reader = Callable[[str, object], Any]


class BadRequest(ValueError):
    """A request that cannot be served as it is; ``field`` names what to change.

    ``status`` is the HTTP status to answer with: 400 for a body that is no JSON object, 413 for
    one that is too large, 422 for a field with a value that is not allowed.
    """

    def __init__(self, field: str, message: str, status: int = 422) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field
        self.message = message
        self.status = status


def json_type(value: object) -> str:
    """What a JSON value is, as messages say it."""
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a text", list: "a list"}
    if value is None:
        return "null"
    return "an empty list" if value == [] else names.get(type(value), "an object")


def refuse_constant(name: str) -> None:
    """For ``parse_constant`` of ``json.loads``: NaN and Infinity are Python's, not JSON's."""
    raise ValueError(f"{name} is not a JSON number")


def text(name: str, value: object, most_bytes: int = MAX_PROMPT_BYTES) -> str:
    """A text that is not empty and is valid Unicode."""
    if not isinstance(value, str):
        raise BadRequest(name, f"must be a text, not {json_type(value)}")
    if not value:
        raise BadRequest(name, "must not be empty")
    try:
        size = len(value.encode("utf-8"))
    except UnicodeEncodeError:
        raise BadRequest(name, "holds a lone surrogate, which is not valid Unicode") from None
    if size > most_bytes:
        raise BadRequest(name, f"is {size} bytes long; allowed are {most_bytes}", 413)
    return value


def integer(low: int, high: int) -> Callable[[str, object], int]:
    """A reader of whole numbers from ``low`` to ``high``."""

    def read(name: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise BadRequest(name, f"must be a whole number, not {json_type(value)}")
        if not low <= value <= high:
            raise BadRequest(name, f"is {value}; allowed are {low} to {high}")
        return value

    return read


def number(low: float, high: float, *, exclude_low: bool = False) -> Callable[[str, object], float]:
    """A reader of numbers from ``low`` (or above it) to ``high``."""

    def read(name: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise BadRequest(name, f"must be a number, not {json_type(value)}")
        in_range = low <= value <= high and not (exclude_low and value == low)
        if not in_range or not math.isfinite(value):
            above = f"above {low:g}, up to" if exclude_low else f"{low:g} to"
            raise BadRequest(name, f"is {value}; allowed are {above} {high:g}")
        return float(value)

    return read


def boolean(name: str, value: object) -> bool:
    """True or false, and nothing that only counts as such."""
    if not isinstance(value, bool):
        raise BadRequest(name, f"must be true or false, not {json_type(value)}")
    return value


def stop_strings(name: str, value: object) -> tuple[str, ...]:
    """One text, or several."""
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list | tuple):
        raise BadRequest(name, f"must be a text or a list of texts, not {json_type(value)}")
    if len(stops) > MAX_STOP_STRINGS:
        raise BadRequest(name, f"holds {len(stops)} texts; allowed are {MAX_STOP_STRINGS}")
    for i, stop in enumerate(stops):
        if len(text(f"{name}[{i}]", stop)) > MAX_STOP_CHARS:
            raise BadRequest(f"{name}[{i}]", f"is longer than {MAX_STOP_CHARS} characters")
    return tuple(stops)


def token_ids(name: str, value: object) -> tuple[int, ...]:
    """Token ids, possibly none; whether the vocabulary has them only the engine knows."""
    if not isinstance(value, list | tuple):
        raise BadRequest(name, f"must be a list of token ids, not {json_type(value)}")
    read = integer(0, MAX_TOKEN_ID)
    return tuple(read(f"{name}[{i}]", token) for i, token in enumerate(value))


def prompt_token_ids(name: str, value: object) -> tuple[int, ...]:
    """Token ids, at least one."""
    if not (given := token_ids(name, value)):
        raise BadRequest(name, "must not be empty")
    return given


def logit_bias(name: str, value: object) -> tuple[tuple[int, float], ...]:
    """An object of token ids and biases, as pairs in the order of the ids."""
    if not isinstance(value, Mapping):
        raise BadRequest(
            name, f'must be an object such as {{"42": -1.5}}, by token id, not {json_type(value)}'
        )
    if len(value) > MAX_BIASED_TOKENS:
        raise BadRequest(name, f"biases {len(value)} tokens; allowed are {MAX_BIASED_TOKENS}")
    read = number(-MAX_BIAS, MAX_BIAS)
    return tuple(
        sorted((_token_key(name, key), read(f"{name}[{key!s:.12}]", value[key])) for key in value)
    )


def _token_key(name: str, key: object) -> int:
    is_number = isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= 10
    # Written in one way only, so that no token is named twice.
    if not is_number or str(int(str(key))) != key or int(key) > MAX_TOKEN_ID:
        raise BadRequest(
            name, f'has the key {key!r:.40}; allowed are token ids, "0" to "{MAX_TOKEN_ID}"'
        )
    return int(key)


def json_schema(name: str, value: object) -> str:
    """A JSON schema, given as an object or as the object's JSON text, as compact JSON text.

    Keys keep their order, because properties are written in it. Whether a grammar can be made of
    it is the engine's to say.
    """
    schema = _decoded(name, value) if isinstance(value, str) else value
    if not isinstance(schema, dict):
        given = f"the text of {json_type(schema)}" if isinstance(value, str) else json_type(value)
        raise BadRequest(name, f"must be an object, or an object's JSON text, not {given}")
    try:
        written = json.dumps(schema, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise BadRequest(name, f"is not JSON: {error}") from None
    return text(name, written, MAX_SCHEMA_BYTES)


def _decoded(name: str, value: str) -> Any:
    text(name, value, 2 * MAX_SCHEMA_BYTES)
    try:
        return json.loads(value, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BadRequest(name, f"is not JSON: {error}") from None


def regex(name: str, value: object) -> str:
    """A regular expression; whether it can be compiled is the engine's to say."""
    return text(name, value, MAX_REGEX_BYTES)


def generated(name: str, value: object) -> tuple[tuple[int, ...], ...]:
    """Tokens of earlier attempts, one tuple an answer.

    A list of token ids is the one answer's; a list of such lists has one for each answer.
    """
    if isinstance(value, list | tuple) and value and isinstance(value[0], list | tuple):
        return tuple(token_ids(f"{name}[{i}]", answer) for i, answer in enumerate(value))
    return (token_ids(name, value),)
