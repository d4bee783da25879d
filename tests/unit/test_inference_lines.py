"""What a line of TorchServe's answer is taken for."""

from __future__ import annotations

import pytest

from handlers.wire import Failure
from scheduler.torchserve.inference import Answer, WorkerLost, _parse

REPLICA = "demo__r0"


def test_a_line_that_broke_off_is_not_quoted() -> None:
    with pytest.raises(WorkerLost, match="broke off in a line of 32 bytes") as lost:
        _parse(REPLICA, 200, b'{"token_ids":[1],"text":"private')

    assert "private" not in str(lost.value)


def test_torchserves_own_refusal_loses_the_worker_and_not_the_task() -> None:
    body = b'{"code": 404, "type": "ModelNotFoundException", "message": "Model not found"}'

    with pytest.raises(WorkerLost, match="HTTP 404: Model not found"):
        _parse(REPLICA, 404, body)


def test_a_failure_of_the_server_loses_the_worker() -> None:
    with pytest.raises(WorkerLost, match="out of memory"):
        _parse(REPLICA, 500, b'{"status": 500, "message": "out of memory", "field": ""}')


def test_a_failure_of_the_request_is_the_tasks_own() -> None:
    line = b'{"status": 422, "message": "not this", "field": "prompt"}'

    assert _parse(REPLICA, 422, line) == Failure(422, "not this", "prompt")


def test_a_document_that_is_no_frame_is_the_answer() -> None:
    assert _parse(REPLICA, 200, b'{"embeddings": []}') == Answer({"embeddings": []})
