"""The frames a generation answers with, as values and as the lines of JSON that carry them.

One frame a line: any number of :class:`Chunk`, then one :class:`Finish`, or a :class:`Failure` in
its place. The chunks of one answer come in order; those of several answers may alternate. What is
the same in most lines is left out of them, because there is a line for each token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

#: What a token that cannot be drawn at all has; JSON knows no infinity.
LEAST_LOGPROB: Final = -9999.0


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How likely a token was, before temperature and filters: natural logarithms."""

    logprob: float
    #: The likeliest tokens and theirs, most likely first.
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens that follow those sent before, and the text they add.

    ``text`` may be empty although there are tokens (half of a UTF-8 sequence, or the beginning of
    what may become a stop string), and there may be text without tokens (what was held back).
    """

    token_ids: tuple[int, ...]
    text: str
    #: Which of the request's ``n`` answers goes on.
    index: int = 0
    #: One for each token; empty unless they were asked for.
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of a generation."""

    #: "eos": the model ended it; "stop": a stop string; "length": ``max_new_tokens`` or context.
    #: Of the first answer when there are several.
    reason: str
    num_prompt_tokens: int
    #: All tokens of all answers, those of earlier attempts included.
    num_output_tokens: int
    #: The reason of each answer when there are several; empty when there is one.
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request has no answer; below 500 the request is at fault, from 500 on the server."""

    status: int
    message: str
    field: str = ""


Frame = Chunk | Finish | Failure


def join(first: Chunk, then: Chunk) -> Chunk:
    """Two chunks of one answer, one after the other, as one."""
    return Chunk(
        first.token_ids + then.token_ids,
        first.text + then.text,
        first.index,
        first.logprobs + then.logprobs,
    )


def encode_frame(frame: Frame) -> str:
    """One frame as a line of JSON, its line end included."""
    document = _chunk_document(frame) if isinstance(frame, Chunk) else asdict(frame)
    if isinstance(frame, Finish) and not frame.reasons:
        del document["reasons"]
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n"


def decode_frame(line: str | bytes) -> Frame:
    """The frame of one line.

    Raises:
        ValueError: the line is not a frame; the peer speaks another version, or is broken.
    """
    document = json.loads(line)
    if not isinstance(document, dict):
        raise ValueError(f"not a frame: {line!r:.80}")
    try:
        if "text" in document:
            return _chunk(document)
        if "reason" in document:
            reasons = tuple(document.pop("reasons", ()))
            return Finish(**document, reasons=reasons)
        return Failure(**document)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not a frame: {line!r:.80}") from error


def _chunk_document(chunk: Chunk) -> dict[str, Any]:
    document: dict[str, Any] = {"token_ids": chunk.token_ids, "text": chunk.text}
    if chunk.index:
        document["index"] = chunk.index
    if chunk.logprobs:
        document["logprobs"] = [logprob_document(each) for each in chunk.logprobs]
    return document


def _chunk(document: Mapping[str, Any]) -> Chunk:
    return Chunk(
        tuple(document["token_ids"]),
        document["text"],
        document.get("index", 0),
        tuple(map(parse_logprob, document.get("logprobs", ()))),
    )


def logprob_document(given: TokenLogprob) -> dict[str, Any]:
    """A token's log probability as JSON values: what is not finite is ``LEAST_LOGPROB``."""
    top = [[token, _finite(logprob)] for token, logprob in given.top]
    return {"logprob": _finite(given.logprob), "top": top}


def parse_logprob(document: Mapping[str, Any]) -> TokenLogprob:
    """What :func:`logprob_document` made."""
    top = tuple((int(token), float(logprob)) for token, logprob in document["top"])
    return TokenLogprob(float(document["logprob"]), top)


def _finite(logprob: float) -> float:
    return logprob if logprob > LEAST_LOGPROB else LEAST_LOGPROB
