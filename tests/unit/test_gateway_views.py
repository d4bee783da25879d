"""How tasks, chunks and problems look to a client."""

from __future__ import annotations

import json

import pytest

from handlers.wire import BadRequest, TokenLogprob
from scheduler.errors import StoreUnavailable, TaskNotFound
from scheduler.gateway import views
from scheduler.gateway.problems import MAX_MESSAGE_CHARS, describe, http_problem, outcome_error
from scheduler.task import Attempt, JournalChunk, Task, TaskError, TaskEvent, TaskState

RESULT = {"finish_reason": "eos", "num_prompt_tokens": 4, "num_output_tokens": 2}
CHUNKS = [JournalChunk(0, (5,), "a\n"), JournalChunk(1, (6,), "ä")]


def make_task(state: TaskState = TaskState.SUCCEEDED, **changes: object) -> Task:
    fields: dict[str, object] = {
        "id": "01A",
        "tenant": "t",
        "model": "m",
        "document": {"prompt": "secret"},
        "state": state,
        "priority": 0,
        "idempotency_key": None,
        "deadline_at": None,
        "estimated_cost": 9,
        "prompt_cost": 1,
        "cost_per_token": 2,
    }
    return Task(**{**fields, **changes})


def test_a_summary_has_neither_input_nor_output() -> None:
    summary = views.summary(make_task(result=RESULT))

    assert "secret" not in json.dumps(summary)
    assert {"input", "output", "result"}.isdisjoint(summary)
    assert (summary["task_id"], summary["state"]) == ("01A", "succeeded")


def test_a_detail_has_everything() -> None:
    attempt = Attempt(1, 3, "r", "m__r0", 5.0, 0)

    detail = views.detail(make_task(result=RESULT), [attempt], CHUNKS)

    assert detail["input"] == {"prompt": "secret"}
    assert detail["output"] == {"text": "a\nä", "token_ids": [5, 6]}
    assert detail["attempts"][0]["fence"] == 3
    json.dumps(detail)


def test_several_answers_stand_side_by_side() -> None:
    result = {**RESULT, "finish_reasons": ["eos", "length"]}
    task = make_task(document={"prompt": "x", "n": 2}, result=result)
    chunks = [
        JournalChunk(0, (5,), "a", 1),
        JournalChunk(1, (6,), "b"),
        JournalChunk(2, (7,), "c", 1),
    ]

    assert views.answer(task, chunks, "generate") == {
        "task_id": "01A",
        "model": "m",
        "choices": [
            {"index": 0, "text": "b", "token_ids": [6], "finish_reason": "eos"},
            {"index": 1, "text": "ac", "token_ids": [5, 7], "finish_reason": "length"},
        ],
        "usage": {"prompt_tokens": 4, "output_tokens": 2},
    }
    assert [c["text"] for c in views.detail(task, [], chunks)["output"]["choices"]] == ["b", "ac"]
    assert views.result(task) == {
        "finish_reasons": ["eos", "length"],
        "usage": {"prompt_tokens": 4, "output_tokens": 2},
    }


def test_log_probabilities_stand_beside_the_tokens_when_they_were_asked_for() -> None:
    likely = (TokenLogprob(-0.25, ((5, -0.25), (9, -3.5))),)
    chunks = [JournalChunk(0, (5,), "a", 1, likely), JournalChunk(1, (6,), "b", 1, likely)]
    seen = {"logprob": -0.25, "top": [[5, -0.25], [9, -3.5]]}

    assert views.chunk(chunks[0]) == {
        "seq": 0,
        "token_ids": [5],
        "text": "a",
        "index": 1,
        "logprobs": [seen],
    }
    assert views.output([JournalChunk(0, (5, 6), "ab", 0, likely * 2)])["logprobs"] == [seen, seen]


def test_a_summary_says_what_a_lost_attempt_is_worth() -> None:
    assert views.summary(make_task(resume="none"))["resume"] == "none"


def test_a_generations_result_tells_why_it_ended_and_how_long_it_is() -> None:
    usage = {"prompt_tokens": 4, "output_tokens": 2}

    assert views.result(make_task(result=RESULT)) == {"finish_reason": "eos", "usage": usage}


def test_an_embeddings_result_is_as_the_handler_gave_it() -> None:
    result = {"embeddings": [[0.5]], "num_input_tokens": 3}

    assert views.result(make_task(result=result)) == result


def test_a_text_with_line_ends_is_one_line_of_an_event() -> None:
    frame = views.server_sent(TaskEvent("chunk", 1, CHUNKS[0])).decode()

    assert frame == 'id: 1\nevent: chunk\ndata: {"seq":0,"token_ids":[5],"text":"a\\n"}\n\n'


def test_an_end_event_carries_the_result() -> None:
    frame = views.server_sent(TaskEvent("end", 2, task=make_task(result=RESULT))).decode()

    assert frame.startswith("id: 2\nevent: end\n")
    assert json.loads(frame.split("data: ")[1])["result"]["finish_reason"] == "eos"


@pytest.mark.parametrize(
    ("task", "status", "type_"),
    [
        (make_task(TaskState.FAILED, error=TaskError(422, "no", "stop")), 422, "InvalidRequest"),
        (make_task(TaskState.FAILED, error=TaskError(500, "broke")), 500, "Failed"),
        (make_task(TaskState.EXPIRED), 504, "DeadlineExceeded"),
        (make_task(TaskState.CANCELLED), 409, "Cancelled"),
    ],
)
def test_a_task_without_a_result_has_a_status(task: Task, status: int, type_: str) -> None:
    problem = describe(outcome_error(task))

    assert (problem.code, problem.type) == (status, type_)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (BadRequest("top_k", "is wrong"), (422, "InvalidRequest", "top_k: is wrong", "top_k")),
        (BadRequest("", "no JSON", 400), (400, "InvalidRequest", "no JSON", "body")),
        (StoreUnavailable("full"), (503, "StoreUnavailable", "full", "")),
        (TaskNotFound("x"), (404, "TaskNotFound", "there is no task 'x'", "task_id")),
    ],
)
def test_an_error_keeps_status_type_message_and_field(
    error: Exception, expected: tuple[int, str, str, str]
) -> None:
    problem = describe(error)

    assert (problem.code, problem.type, problem.message, problem.field) == expected


def test_an_unforeseen_error_tells_nothing() -> None:
    assert "secret" not in str(describe(KeyError("secret")).to_document())


def test_a_problem_can_be_written_down_whatever_it_quotes() -> None:
    problem = describe(BadRequest("\ud800", "x" * 10_000))

    assert len(problem.message) == MAX_MESSAGE_CHARS
    (problem.message + problem.field).encode("utf-8")


def test_a_problem_of_the_protocol_is_named_after_its_status() -> None:
    assert http_problem(405, "no").type == "MethodNotAllowed"
