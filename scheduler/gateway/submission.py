"""Decides what a request becomes: a submission, or a refusal that names the field.

A request is the document its model's handler will read, plus options that only the gateway
understands. The document is parsed with the handler's own parser, so that both ends refuse the
same things in the same words; nothing is clipped in silence. ``max_new_tokens`` beyond the room
the context leaves is allowed, because such a generation ends with "length", but only the room is
counted as cost. What it does not know: the time, the tokenizer and the random seed are passed in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from handlers.model_config import ModelConfig
from handlers.resumption import label
from handlers.wire import PARSERS, BadRequest, GenerationRequest, Request
from scheduler.cost import Estimate, estimate
from scheduler.errors import InvalidRequest
from scheduler.flow import DEFAULT_CLASS
from scheduler.gateway.tokens import Count
from scheduler.task import Submission, TaskState

MAX_PRIORITY: Final = 1000
#: Longest time a client may give a task, in seconds: thirty days.
MAX_DEADLINE_S: Final = 30 * 24 * 3600.0
MAX_KEY_CHARS: Final = 200
#: Fields of a request that are not the handler's.
OPTION_FIELDS: Final = ("stream", "class", "priority", "deadline_s", "idempotency_key")

DEFAULT_TENANT: Final = "default"
_TENANT: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_CLASS: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")


@dataclass(frozen=True, slots=True)
class Options:
    """What a client asks of the gateway, beside what it asks of the model."""

    stream: bool = False
    #: The priority class it is served in; which there are, operators say.
    priority_class: str = DEFAULT_CLASS
    #: The greater goes first within the tenant's own flow.
    priority: int = 0
    #: Seconds from now after which nobody wants the result; None: never.
    deadline_s: float | None = None
    idempotency_key: str | None = None


def split(fields: Mapping[str, Any]) -> tuple[dict[str, Any], Options]:
    """A flat request as the handler's document and the gateway's options."""
    document = {name: value for name, value in fields.items() if name not in OPTION_FIELDS}
    return document, parse_options({n: v for n, v in fields.items() if n in OPTION_FIELDS})


def parse_options(fields: Mapping[str, Any]) -> Options:
    """Options from their fields, all of which may be missing.

    Raises:
        InvalidRequest: one is of the wrong type or out of range.
    """
    return Options(
        stream=_boolean("stream", fields.get("stream", False)),
        priority_class=parse_class(fields.get("class", DEFAULT_CLASS)),
        priority=_priority(fields.get("priority", 0)),
        deadline_s=_deadline_s(fields.get("deadline_s")),
        idempotency_key=parse_key(fields.get("idempotency_key")),
    )


def parse_key(value: object) -> str | None:
    """An idempotency key; None stays None."""
    if value is None:
        return None
    if not isinstance(value, str) or not value.isprintable() or not value.isascii():
        raise _wrong("idempotency_key", "must be a text of printable ASCII characters")
    if not 1 <= len(value) <= MAX_KEY_CHARS:
        raise _wrong("idempotency_key", f"has {len(value)} characters; 1 to {MAX_KEY_CHARS} may be")
    return value


def parse_state(given: str | None) -> TaskState | None:
    """A state to list the tasks of; None stays None."""
    if given is None:
        return None
    try:
        return TaskState(given)
    except ValueError:
        allowed = ", ".join(state.value for state in TaskState)
        raise _wrong("state", f"{given!r:.40} is no state; allowed are: {allowed}") from None


def parse_class(value: object) -> str:
    """A priority class's name; whether there is one of that name, the store knows."""
    if not isinstance(value, str) or not _CLASS.fullmatch(value):
        allowed = "a letter of a-z, then up to 31 of a-z 0-9 _ -"
        raise _wrong("class", f"{value!r:.60} is no name of a class; use {allowed}")
    return value


def parse(document: Mapping[str, Any], config: ModelConfig) -> Request:
    """The request a document stands for, by the kind of task its model does.

    Raises:
        InvalidRequest: a field is unknown, missing, of the wrong type or out of range.
    """
    if "generated" in document:
        # It is how an interrupted attempt goes on; from a client it would forge output.
        raise _wrong("generated", "is set by the scheduler; put the text into 'prompt' instead")
    try:
        return PARSERS[config.task](document)
    except BadRequest as error:
        raise refusal(error) from None


def refusal(error: BadRequest) -> InvalidRequest:
    """A parser's complaint as the gateway raises it; without a field, the body is at fault."""
    return InvalidRequest(str(error), field=error.field or "body", status=error.status)


def parse_tenant(given: str | None, field: str) -> str:
    """A tenant's name; None is the default tenant."""
    if given is None:
        return DEFAULT_TENANT
    if not _TENANT.fullmatch(given):
        raise _wrong(field, f"{given!r:.100} is no tenant; use 1 to 64 of A-Z a-z 0-9 _ . -")
    return given


def texts_of(request: Request) -> tuple[str, ...]:
    """The texts whose tokens have to be counted; none when the prompt came as tokens."""
    if not isinstance(request, GenerationRequest):
        return request.inputs
    return () if request.prompt is None else (request.prompt,)


def check_vocabulary(request: Request, vocabulary_size: int | None) -> None:
    """Refuse prompt tokens the model does not have; nothing is refused when that is not known."""
    if not isinstance(request, GenerationRequest) or vocabulary_size is None:
        return
    for i, token in enumerate(request.prompt_token_ids or ()):
        if token >= vocabulary_size:
            allowed = f"allowed are 0 to {vocabulary_size - 1}"
            raise _wrong(f"prompt_token_ids[{i}]", f"is {token}; {allowed}")


def decide(
    request: Request,
    config: ModelConfig,
    count: Count,
    options: Options,
    *,
    tenant: str,
    seed: int,
    now: float,
) -> Submission:
    """The submission a request becomes.

    ``count`` is of :func:`texts_of`; ``seed`` is used when the client gave none.

    Raises:
        InvalidRequest: the prompt leaves no room for an answer.
    """
    if not isinstance(request, GenerationRequest):
        # A text longer than the context is cut by the handler, as the model's card says.
        num_tokens = sum(min(n, config.max_context) for n in count.num_tokens)
        cost = estimate(num_tokens, 0)
    else:
        cost = _generation_cost(request, config, count)
        if request.seed is None:
            request = replace(request, seed=seed)
    return Submission(
        tenant=tenant,
        model=config.name,
        document=request.to_document(),
        estimated_cost=cost.estimated_cost,
        prompt_cost=cost.prompt_cost,
        cost_per_token=cost.cost_per_token,
        priority=options.priority,
        priority_class=options.priority_class,
        idempotency_key=options.idempotency_key,
        deadline_at=None if options.deadline_s is None else now + options.deadline_s,
        resume=label(request, config),
    )


def _generation_cost(request: GenerationRequest, config: ModelConfig, count: Count) -> Estimate:
    if request.prompt_token_ids is not None:
        field, num_prompt, is_exact = "prompt_token_ids", len(request.prompt_token_ids), True
    else:
        field, num_prompt, is_exact = "prompt", count.num_tokens[0], count.is_exact
    if is_exact and num_prompt + 1 > config.max_context:
        raise _wrong(
            field,
            f"is {num_prompt} tokens long, which leaves no room for an answer; model "
            f"{config.name!r} holds {config.max_context} tokens, so at most "
            f"{config.max_context - 1} may be given",
        )
    # A bound in bytes may lie beyond the context; the prompt itself then still may fit.
    num_prompt = min(num_prompt, config.max_context - 1)
    room = config.max_context - num_prompt
    # The prompt is read once, whatever is made of it.
    return estimate(num_prompt, request.n * min(request.max_new_tokens, room))


def _wrong(field: str, message: str) -> InvalidRequest:
    return InvalidRequest(f"{field}: {message}", field=field)


def _boolean(field: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _wrong(field, f"must be true or false, not {value!r:.40}")
    return value


def _priority(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong("priority", f"must be a whole number, not {value!r:.40}")
    if not -MAX_PRIORITY <= value <= MAX_PRIORITY:
        raise _wrong("priority", f"is {value!r:.40}; allowed are {-MAX_PRIORITY} to {MAX_PRIORITY}")
    return value


def _deadline_s(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong("deadline_s", f"must be a number of seconds from now, not {value!r:.40}")
    if not 0 < value <= MAX_DEADLINE_S:
        raise _wrong(
            "deadline_s", f"is {value!r:.40}; allowed are above 0, up to {MAX_DEADLINE_S:g}"
        )
    return float(value)
