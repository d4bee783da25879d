"""Whatever JSON a client sends becomes a submission that can be read back, or is refused."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from handlers.model_config import ModelConfig, Source
from handlers.wire import GENERATION_FIELDS, PARSERS
from scheduler.errors import InvalidRequest
from scheduler.gateway.submission import OPTION_FIELDS, decide, parse, split, texts_of
from scheduler.gateway.tokens import Count
from scheduler.task import Submission

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.integers(10**300)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8
)
NAMES = st.sampled_from([*GENERATION_FIELDS, "input", *OPTION_FIELDS]) | st.text(max_size=5)
DOCUMENTS = st.dictionaries(NAMES, VALUES, max_size=5)


def make_config(task: str, max_context: int = 64) -> ModelConfig:
    return ModelConfig(
        name="m",
        task=task,
        source=Source("folder", "/nowhere"),
        engine="pipelined",
        dtype="float32",
        num_stages=1,
        partition=None,
        num_lanes=None,
        max_batch=1,
        max_context=max_context,
        prefill_chunk=8,
        num_replicas=1,
        device_type="cpu",
        device_ids=None,
        response_timeout_s=1,
        startup_timeout_s=1,
    )


def submission_of(fields: dict[str, Any], task: str) -> Submission:
    document, options = split(fields)
    config = make_config(task)
    request = parse(document, config)
    count = Count(tuple(len(text.encode()) for text in texts_of(request)), is_exact=True)
    return decide(request, config, count, options, tenant="t", seed=1, now=0.0)


@given(fields=DOCUMENTS, task=st.sampled_from(["generate", "embed"]))
def test_any_document_is_a_submission_or_refused_by_field(
    fields: dict[str, Any], task: str
) -> None:
    try:
        outcome: Submission | InvalidRequest = submission_of(fields, task)
    except InvalidRequest as error:
        outcome = error

    if isinstance(outcome, InvalidRequest):
        assert outcome.message
        assert 400 <= outcome.status < 500
    else:
        assert outcome.estimated_cost >= 1


@given(
    prompt=st.text(min_size=1, max_size=60),
    max_new_tokens=st.integers(1, 10**6),
    temperature=st.floats(0, 10),
    stop=st.lists(st.text(min_size=1, max_size=5), max_size=3),
)
def test_what_is_stored_is_read_back_as_the_same_request(
    prompt: str, max_new_tokens: int, temperature: float, stop: list[str]
) -> None:
    fields = {"prompt": prompt, "max_new_tokens": max_new_tokens, "stop": stop}
    try:
        submission = submission_of({**fields, "temperature": temperature}, "generate")
    except InvalidRequest as error:
        assert len(prompt.encode()) >= 64, error  # noqa: PT017  # the one reason there may be
        return

    again = PARSERS["generate"](json.loads(json.dumps(submission.document)))
    assert again.to_document() == submission.document
    assert submission.estimated_cost <= 2 * 64
