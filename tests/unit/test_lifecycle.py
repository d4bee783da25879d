"""TorchServe's lock-step calls as calls on an engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from handlers import lifecycle
from handlers.engines.base import Answer, Document, Engine, Place, Request
from handlers.lifecycle import Lifecycle
from handlers.model_config import ModelConfig
from handlers.outbox import Outbox
from handlers.wire import BadRequest, Chunk, Failure, Finish, GenerationRequest, decode_frame


class FakeEngine(Engine):
    """Answers what a test puts into its outbox."""

    def __init__(self) -> None:
        self.outbox = Outbox()
        self.submitted: dict[str, Request] = {}
        self.cancelled: list[str] = []
        self.waited = 0

    @classmethod
    def start(cls, config: ModelConfig, place: Place) -> Engine:
        return cls()

    def submit(self, request_id: str, request: Request) -> None:
        if isinstance(request, GenerationRequest) and request.prompt == "too long":
            raise BadRequest("prompt", "is too long")
        if isinstance(request, GenerationRequest) and request.prompt == "bug":
            raise KeyError("a bug")
        self.submitted[request_id] = request
        self.outbox.open(request_id)

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)
        self.outbox.drop(request_id)

    def take(self, request_id: str) -> list[Answer]:
        return self.outbox.take(request_id)

    def wait(self, timeout_s: float) -> bool:
        self.waited += 1
        return False

    def close(self) -> None:
        pass


class FakeContext:
    """TorchServe's context for one call."""

    def __init__(self, *request_ids: str) -> None:
        self.request_ids = request_ids
        self.stopping_criteria: Mapping[int, Callable[[str], bool | None]] | None = None
        self.statuses: dict[int, tuple[int, str]] = {}
        self.content_types: dict[int, str] = {}
        self.system_properties: dict[str, Any] = {}

    def get_request_id(self, idx: int) -> str:
        return self.request_ids[idx]

    def set_response_status(self, code: int, phrase: str, idx: int) -> None:
        self.statuses[idx] = (code, phrase)

    def set_response_content_type(self, idx: int, value: str) -> None:
        self.content_types[idx] = value

    def verdict(self, index: int) -> bool | None:
        assert self.stopping_criteria is not None
        return self.stopping_criteria[index]("")


class Worker:
    """A lifecycle with a fake engine in it."""

    def __init__(self, task: str = "generate") -> None:
        self.engine = FakeEngine()
        self.lifecycle = Lifecycle(task)
        self.lifecycle._engine = self.engine

    def call(self, **bodies: object) -> tuple[list[str], FakeContext]:
        """``None`` for a request that was sent before."""
        data = [{} if body is None else {"body": body} for body in bodies.values()]
        context = FakeContext(*bodies)
        return self.lifecycle.handle(data, context), context


PROMPT = {"prompt": "p"}
FINISH = Finish("length", 1, 1)


@pytest.fixture
def worker() -> Worker:
    return Worker()


def test_a_new_request_is_submitted_once(worker: Worker) -> None:
    worker.call(a=PROMPT)
    worker.call(a=None, b=bytearray(b'{"prompt": "q"}'))

    assert worker.engine.submitted == {
        "a": GenerationRequest("p"),
        "b": GenerationRequest("q"),
    }


def test_nothing_new_is_an_empty_output_that_goes_on(worker: Worker) -> None:
    outputs, context = worker.call(a=PROMPT)

    assert outputs == [""]
    assert context.verdict(0) is False
    assert context.content_types == {0: "application/x-ndjson"}


def test_news_are_handed_over_as_lines_in_the_order_of_the_requests(worker: Worker) -> None:
    worker.call(a=PROMPT, b=PROMPT)
    worker.engine.outbox.put("b", [Chunk((1,), "x"), Chunk((2,), "y")])
    worker.engine.outbox.put("a", [Chunk((3,), "z"), FINISH])

    outputs, context = worker.call(b=None, a=None)

    assert decode_frame(outputs[0]) == Chunk((1, 2), "xy")
    assert [decode_frame(line) for line in outputs[1].splitlines()] == [Chunk((3,), "z"), FINISH]
    assert [context.verdict(0), context.verdict(1)] == [False, True]


def test_an_answer_that_ends_in_its_first_output_is_no_stream(worker: Worker) -> None:
    submit = worker.engine.submit

    def answer_at_once(request_id: str, request: Request) -> None:
        submit(request_id, request)
        worker.engine.outbox.put(request_id, [FINISH])

    worker.engine.submit = answer_at_once
    _, context = worker.call(a=PROMPT)

    assert context.verdict(0) is None


def test_a_vanished_request_is_cancelled_and_the_others_go_on(worker: Worker) -> None:
    worker.call(a=PROMPT, b=PROMPT)

    worker.call(b=None)

    assert worker.engine.cancelled == ["a"]


def test_a_finished_request_is_not_cancelled(worker: Worker) -> None:
    worker.call(a=PROMPT)
    worker.engine.outbox.put("a", [FINISH])
    worker.call(a=None)

    worker.call(b=PROMPT)

    assert worker.engine.cancelled == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"prompt": ""}, 422),
        ({"prompt": "too long"}, 422),
        (b"{", 400),
        ("words", 400),
        ([1, 2], 400),
        (7, 400),
        (None, 400),
    ],
)
def test_a_bad_request_is_refused_alone(worker: Worker, body: object, status: int) -> None:
    outputs, context = worker.call(good=PROMPT, bad=body)

    failure = decode_frame(outputs[1])
    assert isinstance(failure, Failure)
    assert failure.status == status
    assert context.statuses[1][0] == status
    assert context.verdict(1) is None
    assert (outputs[0], context.verdict(0)) == ("", False)


def test_a_bug_in_one_request_fails_that_one_only(worker: Worker) -> None:
    outputs, context = worker.call(good=PROMPT, bad={"prompt": "bug"})

    assert decode_frame(outputs[1]) == Failure(500, "KeyError in the worker")
    assert context.statuses == {1: (500, "Internal Server Error")}
    assert list(worker.engine.submitted) == ["good"]


def test_a_refusal_is_told_without_waiting(worker: Worker) -> None:
    worker.call(bad=b"{")

    assert worker.engine.waited == 0


def test_a_document_is_sent_as_plain_json() -> None:
    worker = Worker("embed")
    worker.call(a={"input": "text"})
    worker.engine.outbox.put("a", [Document({"num_input_tokens": 3})])

    outputs, context = worker.call(a=None)

    assert json.loads(outputs[0]) == {"num_input_tokens": 3}
    assert context.verdict(0) is True


def test_the_first_output_of_an_embedding_says_that_it_is_json() -> None:
    _, context = Worker("embed").call(a={"input": "text"})

    assert context.content_types == {0: "application/json"}


def test_a_failure_within_a_stream_is_its_last_frame(worker: Worker) -> None:
    worker.call(a=PROMPT)
    worker.engine.outbox.put("a", [Failure(503, "gone")])

    outputs, context = worker.call(a=None)

    assert decode_frame(outputs[0]) == Failure(503, "gone")
    assert context.verdict(0) is True
    assert context.statuses == {}


def test_handle_before_initialize_says_so() -> None:
    with pytest.raises(RuntimeError, match="before initialize"):
        Lifecycle("generate").handle([], FakeContext())


def test_an_unknown_engine_is_an_import_error() -> None:
    config = ModelConfig.__new__(ModelConfig)
    object.__setattr__(config, "engine", "none_such")

    with pytest.raises(ImportError, match="none_such"):
        lifecycle.start_engine(config, Place())
