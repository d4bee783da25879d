"""What an undisturbed run answers: every token a function of the request and its position.

That is what the engine's counter-based sampling gives, so an answer is known before anything runs,
and any journal can be held against it.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

_VOCABULARY = 50_000


def num_answers(document: Mapping[str, Any]) -> int:
    return int(document.get("n", 1))


def tokens(document: Mapping[str, Any], answer: int) -> tuple[int, ...]:
    """Every token of an answer."""
    count = document["max_new_tokens"]
    return tuple(token(document, answer, position) for position in range(count))


def token(document: Mapping[str, Any], answer: int, position: int) -> int:
    """The token at a position of an answer, from 0."""
    return zlib.crc32(f"{document['seed']} {answer} {position}".encode()) % _VOCABULARY


def text(token_ids: tuple[int, ...]) -> str:
    """What tokens add to the text."""
    return "".join(f"<{token}>" for token in token_ids)


def tail(document: Mapping[str, Any], answer: int) -> str:
    """Text that comes after the last token, by itself: what may have become a stop string."""
    return f" end of {answer}" if document.get("has_tail") else ""


def whole_text(document: Mapping[str, Any], answer: int) -> str:
    return text(tokens(document, answer)) + tail(document, answer)
