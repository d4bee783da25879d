"""Checks of single values of a model's YAML: each says what is allowed, or None when all is well.

What they say is told to the reader of an error and of the documentation alike, word for word. They
know no key: which check belongs to which is in ``model_schema``.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable
from typing import Final

#: Says what is allowed instead, or None when the value is fine.
Check = Callable[[object], str | None]

_UNITS: Final = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SIZE: Final = re.compile(r"(?P<number>[0-9]{1,15}(\.[0-9]{1,6})?) ?(?P<unit>B|[KMGT]iB)")


def show(value: object) -> str:
    """A value as it may appear in a message: short, whatever it is."""
    if isinstance(value, bool):
        return str(value).lower()
    return "nothing" if value is None else reprlib.repr(value)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def whole(low: int) -> Check:
    def check(value: object) -> str | None:
        if _is_whole(value) and low <= value <= 2**31 - 1:  # type: ignore[operator]  # checked before it
            return None
        return f"must be a whole number from {low}"

    return check


def exactly(allowed: object, reason: str) -> Check:
    def check(value: object) -> str | None:
        same = value == allowed and type(value) is type(allowed)
        return None if same else f"must be {show(allowed)}: {reason}"

    return check


def one_of(*allowed: str) -> Check:
    def check(value: object) -> str | None:
        return None if value in allowed else f"must be one of: {', '.join(allowed)}"

    return check


def text(value: object) -> str | None:
    return None if isinstance(value, str) and value.strip() else "must be a text"


def beginning(*starts: str) -> Check:
    said = " or ".join(starts)

    def check(value: object) -> str | None:
        good = isinstance(value, str) and any(
            value.startswith(start) and len(value) > len(start) for start in starts
        )
        return None if good else f"must be a text that begins with {said}"

    return check


def sha256(value: object) -> str | None:
    good = isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None
    return None if good else "must be a sha256: 64 of 0-9 and a-f, in quotes"


def mapping(value: object) -> str | None:
    return None if isinstance(value, dict) else "must be a section with keys of its own"


def device_ids(value: object) -> str | None:
    if isinstance(value, list) and value and all(_is_whole(i) and i >= 0 for i in value):
        return None if len(set(value)) == len(value) else "names a device twice"
    return "must be a list of whole numbers from 0, such as [0, 1]; TorchServe drops any other list"


def word_or(word: str, check: Check) -> Check:
    def checked(value: object) -> str | None:
        if value == word or (complaint := check(value)) is None:
            return None
        return f"{complaint}, or {word}"

    return checked


def auto_or(check: Check) -> Check:
    return word_or("auto", check)


def layer_counts(value: object) -> str | None:
    if isinstance(value, list) and value and all(_is_whole(i) and i >= 1 for i in value):
        return None
    return "must be a list of layer counts from 1, such as [4, 4]"


def never(reason: str) -> Check:
    return lambda _: f"is not allowed: {reason}"


def boolean(value: object) -> str | None:
    return None if isinstance(value, bool) else "must be true or false"


def number_from(low: float) -> Check:
    def check(value: object) -> str | None:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and low <= value <= 1e9:  # type: ignore[operator]  # checked before it
            return None
        return f"must be a number from {low:g}"

    return check


def number_between(low: float, high: float) -> Check:
    def check(value: object) -> str | None:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and low <= value <= high:  # type: ignore[operator]  # checked before it
            return None
        return f"must be a number from {low:g} to {high:g}"

    return check


def size(value: object) -> str | None:
    if isinstance(value, str) and (match := _SIZE.fullmatch(value)) and float(match["number"]):
        return None
    return f"must be a size such as 8GiB or 512MiB (units are {', '.join(_UNITS)})"


def size_bytes(value: str) -> int:
    """The bytes of a size that passed :func:`size`."""
    match = _SIZE.fullmatch(value)
    assert match is not None
    return int(float(match["number"]) * _UNITS[match["unit"]])
