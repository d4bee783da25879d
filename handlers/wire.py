"""The shapes of requests and answers that cross a process boundary as JSON.

Both ends use this file: the gateway parses what a client sent with it, the runner writes what it
posts to TorchServe with it, and the handler inside the worker parses that again. So a request is
refused for the same reason, in the same words, wherever it is refused. It needs the standard
library only and knows neither a tokenizer nor a model: a prompt's length in tokens is checked by
whoever has one.

Answers of a generation are lines of JSON, one *frame* a line: any number of :class:`Chunk`, then
one :class:`Finish`, or an :class:`Failure` in its place.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

#: Longest prompt taken, in bytes of UTF-8; a ceiling for memory, not for the model.
MAX_PROMPT_BYTES: Final = 4 * 1024 * 1024
#: Most tokens one request may ask for; a model's own context is usually the tighter bound.
MAX_NEW_TOKENS: Final = 1_000_000
#: Most stop strings, and the longest of them in characters.
MAX_STOP_STRINGS: Final = 16
MAX_STOP_CHARS: Final = 256
#: Most texts in one embedding request.
MAX_EMBEDDING_INPUTS: Final = 2048
MAX_SEED: Final = 2**63 - 1


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


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A prompt to continue, and how.

    Exactly one of ``prompt`` and ``prompt_token_ids`` is set. ``generated`` holds the tokens that
    earlier attempts already produced: the engine goes on after them and does not send them again.
    """

    prompt: str | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    #: Most tokens to produce in all, those in ``generated`` included.
    max_new_tokens: int = 64
    #: 0 is greedy decoding.
    temperature: float = 0.0
    #: 0 keeps every token.
    top_k: int = 0
    top_p: float = 1.0
    #: None until the gateway has drawn one; the draw for a token depends on (seed, position) only.
    seed: int | None = None
    #: Generation ends before the first of these that the text would contain.
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    generated: tuple[int, ...] = ()
    #: Tokens less likely than this share of the likeliest one are left out; 0 keeps every token.
    min_p: float = 0.0
    #: Divides (or multiplies, below 0) the logits of tokens in prompt and answer; 1 changes none.
    repetition_penalty: float = 1.0
    #: Taken from the logits of tokens the answer already holds, once, and once per occurrence.
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    #: (token id, what is added to its logit).
    logit_bias: tuple[tuple[int, float], ...] = ()
    #: None: no log probabilities; else those of the tokens drawn and of so many likeliest ones.
    logprobs: int | None = None
    #: Answers to one prompt, each with noise of its own.
    n: int = 1
    #: What the answer must match: a JSON schema (as JSON text), or a regular expression.
    json_schema: str | None = None
    regex: str | None = None

    def generated_of(self, index: int) -> tuple[int, ...]:
        """What earlier attempts produced of the answer ``index``, 0 to ``n`` - 1."""
        return self.generated if index == 0 else ()

    def to_document(self) -> dict[str, Any]:
        """The JSON object that :func:`parse_generation` reads back; unset fields are left out."""
        document = {key: value for key, value in asdict(self).items() if value is not None}
        for name in ("stop", "generated", "logit_bias"):
            if not document[name]:
                del document[name]
        return document


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """Texts to turn into vectors, one vector each, in their order."""

    inputs: tuple[str, ...]

    def to_document(self) -> dict[str, Any]:
        return {"input": list(self.inputs)}


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
    reason: str
    num_prompt_tokens: int
    #: All tokens of the answer, those of earlier attempts included.
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
Parser = Callable[[Mapping[str, Any]], GenerationRequest | EmbeddingRequest]


def encode_frame(frame: Frame) -> str:
    """One frame as a line of JSON, its line end included."""
    return json.dumps(asdict(frame), ensure_ascii=False, separators=(",", ":")) + "\n"


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
            return Chunk(tuple(document["token_ids"]), document["text"])
        if "reason" in document:
            return Finish(**document)
        return Failure(**document)
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a frame: {line!r:.80}") from error


def decode_object(body: bytes) -> dict[str, Any]:
    """The JSON object in ``body``.

    Raises:
        BadRequest: the body is not UTF-8, not JSON, or not an object.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"not UTF-8: byte 0x{body[error.start]:02x} at position {error.start}"
        raise BadRequest("", f"the body is {message}", 400) from None
    try:
        document = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BadRequest("", f"the body is not JSON: {error}", 400) from None
    if not isinstance(document, dict):
        kind = _json_type(document)
        raise BadRequest("", f"the body must be a JSON object, not {kind}", 400)
    return document


def parse_generation(document: Mapping[str, Any]) -> GenerationRequest:
    """A generation request from its JSON object.

    Raises:
        BadRequest: a field is unknown, missing, of the wrong type or out of range.
    """
    _refuse_unknown(document, GENERATION_FIELDS)
    values = {name: GENERATION_FIELDS[name](name, value) for name, value in document.items()}
    if ("prompt" in values) == ("prompt_token_ids" in values):
        raise BadRequest("prompt", "give exactly one of 'prompt' and 'prompt_token_ids'")
    request = GenerationRequest(**values)
    if len(request.generated) > request.max_new_tokens:
        raise BadRequest("generated", "holds more tokens than 'max_new_tokens' allows")
    return request


def parse_embedding(document: Mapping[str, Any]) -> EmbeddingRequest:
    """An embedding request from its JSON object: ``{"input": text or [text, ...]}``.

    Raises:
        BadRequest: a field is unknown, missing, of the wrong type or out of range.
    """
    _refuse_unknown(document, ("input",))
    if "input" not in document:
        raise BadRequest("input", "is missing: a text, or a list of texts")
    given = document["input"]
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts:
        raise BadRequest("input", f"must be a text or a list of texts, not {_json_type(given)}")
    if len(texts) > MAX_EMBEDDING_INPUTS:
        raise BadRequest("input", f"holds {len(texts)} texts; allowed are {MAX_EMBEDDING_INPUTS}")
    return EmbeddingRequest(tuple(_text(f"input[{i}]", text) for i, text in enumerate(texts)))


#: What parses a request's document, by the kind of task a model does.
PARSERS: Final[Mapping[str, Parser]] = {"generate": parse_generation, "embed": parse_embedding}


def _refuse_unknown(document: Mapping[str, Any], allowed: Collection[str]) -> None:
    for name in document:
        if name not in allowed:
            raise BadRequest(str(name)[:64], f"unknown field; allowed are: {', '.join(allowed)}")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _json_type(value: object) -> str:
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a text", list: "a list"}
    if value is None:
        return "null"
    return "an empty list" if value == [] else names.get(type(value), "an object")


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise BadRequest(name, f"must be a text, not {_json_type(value)}")
    if not value:
        raise BadRequest(name, "must not be empty")
    try:
        size = len(value.encode("utf-8"))
    except UnicodeEncodeError:
        raise BadRequest(name, "holds a lone surrogate, which is not valid Unicode") from None
    if size > MAX_PROMPT_BYTES:
        raise BadRequest(name, f"is {size} bytes long; allowed are {MAX_PROMPT_BYTES}", 413)
    return value


def _integer(low: int, high: int) -> Callable[[str, object], int]:
    def parse(name: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise BadRequest(name, f"must be a whole number, not {_json_type(value)}")
        if not low <= value <= high:
            raise BadRequest(name, f"is {value}; allowed are {low} to {high}")
        return value

    return parse


def _number(
    low: float, high: float, *, exclude_low: bool = False
) -> Callable[[str, object], float]:
    def parse(name: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise BadRequest(name, f"must be a number, not {_json_type(value)}")
        in_range = low <= value <= high and not (exclude_low and value == low)
        if not in_range or not math.isfinite(value):
            above = f"above {low:g}, up to" if exclude_low else f"{low:g} to"
            raise BadRequest(name, f"is {value}; allowed are {above} {high:g}")
        return float(value)

    return parse


def _boolean(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise BadRequest(name, f"must be true or false, not {_json_type(value)}")
    return value


def _stop_strings(name: str, value: object) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list | tuple):
        raise BadRequest(name, f"must be a text or a list of texts, not {_json_type(value)}")
    if len(stops) > MAX_STOP_STRINGS:
        raise BadRequest(name, f"holds {len(stops)} texts; allowed are {MAX_STOP_STRINGS}")
    for i, stop in enumerate(stops):
        if len(_text(f"{name}[{i}]", stop)) > MAX_STOP_CHARS:
            raise BadRequest(f"{name}[{i}]", f"is longer than {MAX_STOP_CHARS} characters")
    return tuple(stops)


def _token_ids(name: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list | tuple):
        raise BadRequest(name, f"must be a list of token ids, not {_json_type(value)}")
    parse = _integer(0, 2**31 - 1)
    return tuple(parse(f"{name}[{i}]", token) for i, token in enumerate(value))


def _prompt_token_ids(name: str, value: object) -> tuple[int, ...]:
    if not (token_ids := _token_ids(name, value)):
        raise BadRequest(name, "must not be empty")
    return token_ids


#: Every field a generation request may have, and what reads it.
GENERATION_FIELDS: Final[Mapping[str, Callable[[str, object], Any]]] = {
    "prompt": _text,
    "prompt_token_ids": _prompt_token_ids,
    "max_new_tokens": _integer(1, MAX_NEW_TOKENS),
    "temperature": _number(0.0, 10.0),
    "top_k": _integer(0, 2**31 - 1),
    "top_p": _number(0.0, 1.0, exclude_low=True),
    "seed": _integer(0, MAX_SEED),
    "stop": _stop_strings,
    "ignore_eos": _boolean,
    "generated": _token_ids,
}
