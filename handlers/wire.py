"""The shapes of requests and answers that cross a process boundary as JSON.

Both ends use this file: the gateway parses what a client sent with it, the runner writes what it
posts to TorchServe with it, and the handler inside the worker parses that again. So a request is
refused for the same reason, in the same words, wherever it is refused. It needs the standard
library only and knows neither a tokenizer nor a model: a prompt's length in tokens, the ids a
vocabulary has, and whether a schema or regular expression can be compiled are checked by whoever
has one. Single fields are read in ``fields``; here is what makes them a request.

Answers of a generation are lines of JSON, one *frame* a line: any number of :class:`Chunk`, then
one :class:`Finish`, or an :class:`Failure` in its place.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from handlers import fields
from handlers.fields import BadRequest, json_type
from handlers.frames import (
    Chunk,
    Failure,
    Finish,
    Frame,
    TokenLogprob,
    decode_frame,
    encode_frame,
    join,
    logprob_document,
    parse_logprob,
)

__all__ = [
    "GENERATION_FIELDS",
    "MAX_EMBEDDING_INPUTS",
    "PARSERS",
    "BadRequest",
    "Chunk",
    "ClassificationRequest",
    "EmbeddingRequest",
    "Failure",
    "Finish",
    "Frame",
    "GenerationRequest",
    "Request",
    "TokenLogprob",
    "decode_frame",
    "decode_object",
    "encode_frame",
    "join",
    "logprob_document",
    "parse_classification",
    "parse_embedding",
    "parse_generation",
    "parse_logprob",
]

#: Most texts in one embedding or classification request.
MAX_EMBEDDING_INPUTS: Final = 2048
#: Most answers to one prompt, and most likeliest tokens that are told beside each.
MAX_ANSWERS: Final = 16
MAX_LOGPROBS: Final = 20


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
    #: Of the first answer; of the others below.
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

    #: What earlier attempts produced of the answers 1 to ``n`` - 1; empty: nothing of any.
    other_generated: tuple[tuple[int, ...], ...] = ()

    def generated_of(self, index: int) -> tuple[int, ...]:
        """What earlier attempts produced of the answer ``index``, 0 to ``n`` - 1."""
        if index == 0:
            return self.generated
        return self.other_generated[index - 1] if self.other_generated else ()

    def to_document(self) -> dict[str, Any]:
        """The JSON object that :func:`parse_generation` reads back.

        Fields that came later are left out where they change nothing, so that a request is the
        same document it was to an older Plait: an idempotency key still finds its task.
        """
        document = asdict(self)
        del document["other_generated"]
        for name, unset in _LEFT_OUT.items():
            if document[name] == unset:
                del document[name]
        if self.logit_bias:
            document["logit_bias"] = {str(token): bias for token, bias in self.logit_bias}
        if self.n > 1:
            answers = [list(self.generated_of(index)) for index in range(self.n)]
            document["generated"] = answers
            if not any(answers):
                del document["generated"]
        return document


#: Fields that a document does without when they have this value.
_LEFT_OUT: Final[Mapping[str, Any]] = {
    "prompt": None,
    "prompt_token_ids": None,
    "seed": None,
    "stop": (),
    "generated": (),
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "logit_bias": (),
    "logprobs": None,
    "n": 1,
    "json_schema": None,
    "regex": None,
}


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """Texts to turn into vectors, one vector each, in their order."""

    inputs: tuple[str, ...]

    def to_document(self) -> dict[str, Any]:
        return {"input": list(self.inputs)}


@dataclass(frozen=True, slots=True)
class ClassificationRequest:
    """Texts to sort into the model's classes, each on its own."""

    inputs: tuple[str, ...]

    def to_document(self) -> dict[str, Any]:
        return {"input": list(self.inputs)}


Request = GenerationRequest | EmbeddingRequest | ClassificationRequest
Parser = Callable[[Mapping[str, Any]], Request]


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
        document = json.loads(text, parse_constant=fields.refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BadRequest("", f"the body is not JSON: {error}", 400) from None
    if not isinstance(document, dict):
        kind = json_type(document)
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
    first, *others = values.pop("generated", ((),))
    request = GenerationRequest(**values, generated=first, other_generated=tuple(others))
    _check_generated(request, 1 + len(others))
    _check_grammar(request)
    return request


def _check_generated(request: GenerationRequest, num_answers: int) -> None:
    if num_answers not in (1, request.n) or (request.n > 1 == num_answers and request.generated):
        raise BadRequest(
            "generated", f"must hold {request.n} lists of token ids, one for each answer ('n')"
        )
    if any(len(request.generated_of(i)) > request.max_new_tokens for i in range(request.n)):
        raise BadRequest("generated", "holds more tokens than 'max_new_tokens' allows")


def _check_grammar(request: GenerationRequest) -> None:
    if request.json_schema is not None and request.regex is not None:
        raise BadRequest("regex", "give 'json_schema' or 'regex', not both")
    if request.ignore_eos and (request.json_schema or request.regex):
        name = "json_schema" if request.json_schema else "regex"
        raise BadRequest(
            "ignore_eos", f"must be false with {name!r}, which says where the answer ends"
        )


def parse_embedding(document: Mapping[str, Any]) -> EmbeddingRequest:
    """An embedding request from its JSON object: ``{"input": text or [text, ...]}``.

    Raises:
        BadRequest: a field is unknown, missing, of the wrong type or out of range.
    """
    return EmbeddingRequest(_inputs(document))


def parse_classification(document: Mapping[str, Any]) -> ClassificationRequest:
    """A classification request from its JSON object: ``{"input": text or [text, ...]}``.

    Raises:
        BadRequest: a field is unknown, missing, of the wrong type or out of range.
    """
    return ClassificationRequest(_inputs(document))


def _inputs(document: Mapping[str, Any]) -> tuple[str, ...]:
    _refuse_unknown(document, ("input",))
    if "input" not in document:
        raise BadRequest("input", "is missing: a text, or a list of texts")
    given = document["input"]
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts:
        raise BadRequest("input", f"must be a text or a list of texts, not {json_type(given)}")
    if len(texts) > MAX_EMBEDDING_INPUTS:
        raise BadRequest("input", f"holds {len(texts)} texts; allowed are {MAX_EMBEDDING_INPUTS}")
    return tuple(fields.text(f"input[{i}]", text) for i, text in enumerate(texts))


#: What parses a request's document, by the kind of task a model does.
PARSERS: Final[Mapping[str, Parser]] = {
    "generate": parse_generation,
    "embed": parse_embedding,
    "classify": parse_classification,
}


def _refuse_unknown(document: Mapping[str, Any], allowed: Collection[str]) -> None:
    for name in document:
        if name not in allowed:
            raise BadRequest(str(name)[:64], f"unknown field; allowed are: {', '.join(allowed)}")


#: Every field a generation request may have, and what reads it.
GENERATION_FIELDS: Final[Mapping[str, fields.Reader]] = {
    "prompt": fields.text,
    "prompt_token_ids": fields.prompt_token_ids,
    "max_new_tokens": fields.integer(1, fields.MAX_NEW_TOKENS),
    "temperature": fields.number(0.0, 10.0),
    "top_k": fields.integer(0, 2**31 - 1),
    "top_p": fields.number(0.0, 1.0, exclude_low=True),
    "min_p": fields.number(0.0, 1.0),
    "repetition_penalty": fields.number(0.0, 10.0, exclude_low=True),
    "presence_penalty": fields.number(-2.0, 2.0),
    "frequency_penalty": fields.number(-2.0, 2.0),
    "logit_bias": fields.logit_bias,
    "seed": fields.integer(0, fields.MAX_SEED),
    "stop": fields.stop_strings,
    "ignore_eos": fields.boolean,
    "logprobs": fields.integer(0, MAX_LOGPROBS),
    "n": fields.integer(1, MAX_ANSWERS),
    "json_schema": fields.json_schema,
    "regex": fields.regex,
    "generated": fields.generated,
}
