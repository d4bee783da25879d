"""From a request to a submission, or to a refusal that names the field."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from handlers.model_config import ModelConfig, Source
from handlers.wire import ClassificationRequest, EmbeddingRequest, GenerationRequest, Request
from scheduler.errors import InvalidRequest
from scheduler.gateway.submission import (
    MAX_KEY_CHARS,
    Options,
    check_vocabulary,
    decide,
    parse,
    parse_options,
    split,
    texts_of,
)
from scheduler.gateway.tokens import Count
from scheduler.task import Submission


def config(task: str = "generate", max_context: int = 100) -> ModelConfig:
    return ModelConfig(
        name="m",
        task=task,
        source=Source("folder", "/nowhere"),
        engine="pipelined",
        dtype="float32",
        num_stages=2,
        partition=None,
        num_lanes=None,
        max_batch=16,
        max_context=max_context,
        prefill_chunk=64,
        num_replicas=1,
        device_type="cpu",
        device_ids=None,
        response_timeout_s=60,
        startup_timeout_s=60,
    )


def decided(
    request: Request,
    *num_tokens: int,
    is_exact: bool = True,
    **options: Any,
) -> Submission:
    tasks = {EmbeddingRequest: "embed", ClassificationRequest: "classify"}
    task = tasks.get(type(request), "generate")
    count = Count(num_tokens, is_exact)
    return decide(request, config(task), count, Options(**options), tenant="t", seed=7, now=1000.0)


def test_several_answers_cost_one_prompt_and_all_their_new_tokens() -> None:
    submission = decided(GenerationRequest(prompt="p", max_new_tokens=20, n=3), 10)

    assert (submission.estimated_cost, submission.prompt_cost) == (10 + 2 * 3 * 20, 10)


def test_a_classification_costs_its_texts() -> None:
    submission = decided(ClassificationRequest(("a", "b")), 3, 4)

    assert (submission.estimated_cost, submission.cost_per_token) == (7, 0)
    assert submission.document == {"input": ["a", "b"]}


def test_a_submission_says_what_a_lost_attempt_is_worth() -> None:
    elsewhere = replace(config(), engine="vllm")
    request = GenerationRequest(prompt="p", regex="a+", seed=1)

    there = decide(request, elsewhere, Count((10,), True), Options(), tenant="t", seed=7, now=0.0)

    assert (decided(request, 10).resume, there.resume) == ("close", "none")


def test_a_generation_costs_its_prompt_and_twice_its_new_tokens() -> None:
    submission = decided(GenerationRequest(prompt="p", max_new_tokens=20), 10)

    assert (submission.prompt_cost, submission.cost_per_token) == (10, 2)
    assert submission.estimated_cost == 10 + 2 * 20


def test_only_the_room_left_in_the_context_is_counted_as_cost() -> None:
    submission = decided(GenerationRequest(prompt="p", max_new_tokens=500), 90)

    assert submission.estimated_cost == 90 + 2 * 10
    assert submission.document["max_new_tokens"] == 500


@pytest.mark.parametrize("num_tokens", [99, 1])
def test_a_prompt_with_room_for_one_token_is_accepted(num_tokens: int) -> None:
    assert decided(GenerationRequest(prompt="p"), num_tokens).prompt_cost == num_tokens


def test_a_prompt_without_room_for_one_token_is_refused_with_the_numbers() -> None:
    with pytest.raises(InvalidRequest, match=r"100 tokens.*at most 99") as caught:
        decided(GenerationRequest(prompt="p"), 100)

    assert (caught.value.field, caught.value.status) == ("prompt", 422)


def test_prompt_tokens_are_counted_without_a_tokenizer() -> None:
    with pytest.raises(InvalidRequest) as caught:
        decided(GenerationRequest(prompt_token_ids=(1,) * 100))

    assert caught.value.field == "prompt_token_ids"


def test_a_bound_in_bytes_never_refuses() -> None:
    submission = decided(GenerationRequest(prompt="p" * 400), 400, is_exact=False)

    assert submission.estimated_cost == 99 + 2 * 1


def test_an_embedding_costs_its_tokens_cut_to_the_context() -> None:
    submission = decided(EmbeddingRequest(("a", "b")), 30, 400)

    assert (submission.estimated_cost, submission.cost_per_token) == (130, 0)
    assert submission.document == {"input": ["a", "b"]}


def test_a_seed_is_taken_over_only_when_the_client_gave_none() -> None:
    drawn = decided(GenerationRequest(prompt="p"), 1)
    given = decided(GenerationRequest(prompt="p", seed=0), 1)

    assert (drawn.document["seed"], given.document["seed"]) == (7, 0)


def test_a_deadline_becomes_a_moment() -> None:
    assert decided(GenerationRequest(prompt="p"), 1, deadline_s=2.5).deadline_at == 1002.5
    assert decided(GenerationRequest(prompt="p"), 1).deadline_at is None


def test_options_travel_with_the_submission() -> None:
    submission = decided(GenerationRequest(prompt="p"), 1, priority=5, idempotency_key="k")

    assert (submission.priority, submission.idempotency_key) == (5, "k")
    assert (submission.tenant, submission.model) == ("t", "m")


def test_a_document_is_parsed_by_the_kind_of_task() -> None:
    assert parse({"prompt": "p"}, config()) == GenerationRequest(prompt="p")
    assert parse({"input": "p"}, config("embed")) == EmbeddingRequest(("p",))


def test_a_client_cannot_send_generated_tokens() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse({"prompt": "p", "generated": [1]}, config())

    assert caught.value.field == "generated"


def test_a_parsers_refusal_keeps_field_status_and_words() -> None:
    with pytest.raises(InvalidRequest, match="top_p: is 2; allowed are") as caught:
        parse({"prompt": "p", "top_p": 2}, config())

    assert (caught.value.field, caught.value.status) == ("top_p", 422)


def test_options_are_split_from_the_document() -> None:
    fields = {
        "prompt": "p",
        "stream": True,
        "class": "batch",
        "priority": 1,
        "deadline_s": 3,
        "idempotency_key": "k",
    }

    document, options = split(fields)

    assert document == {"prompt": "p"}
    assert options == Options(
        stream=True, priority_class="batch", priority=1, deadline_s=3.0, idempotency_key="k"
    )


def test_a_submission_is_in_the_class_that_was_asked_for() -> None:
    request = GenerationRequest(prompt="p")

    assert decided(request, 3).priority_class == "standard"
    assert decided(request, 3, priority_class="batch").priority_class == "batch"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stream", 1),
        ("class", None),
        ("class", 1),
        ("class", ""),
        ("class", "Batch"),
        ("class", "two words"),
        ("class", "c" * 33),
        ("priority", True),
        ("priority", 1.0),
        ("priority", 10**400),
        ("deadline_s", True),
        ("deadline_s", float("nan")),
        ("deadline_s", float("inf")),
        ("deadline_s", 10**400),
        ("idempotency_key", "a\nb"),
        ("idempotency_key", "ä"),
        ("idempotency_key", "k" * (MAX_KEY_CHARS + 1)),
    ],
)
def test_a_wrong_option_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_options({field: value})

    assert caught.value.field == field


@pytest.mark.parametrize(
    ("request_", "texts"),
    [
        (GenerationRequest(prompt="p"), ("p",)),
        (GenerationRequest(prompt_token_ids=(1,)), ()),
        (EmbeddingRequest(("a", "b")), ("a", "b")),
    ],
)
def test_only_texts_have_to_be_counted(request_: Any, texts: tuple[str, ...]) -> None:
    assert texts_of(request_) == texts


def test_a_token_beyond_the_vocabulary_is_refused_by_its_position() -> None:
    request = GenerationRequest(prompt_token_ids=(1, 50))

    check_vocabulary(request, 51)
    check_vocabulary(request, None)
    with pytest.raises(InvalidRequest, match="allowed are 0 to 49") as caught:
        check_vocabulary(request, 50)
    assert caught.value.field == "prompt_token_ids[1]"
