"""What ``handlers/engines/base.py`` promises, asked of every engine, each as one rank."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from handlers import model_config
from handlers.engines.base import Answer, is_final
from handlers.wire import BadRequest
from tests.contracts.engine_subjects import CONFIGS, TIMEOUT_S, Subject

#: Starting an engine with processes of its own takes a while on a busy machine.
pytestmark = pytest.mark.timeout(150)


def test_every_engine_is_asked() -> None:
    assert set(CONFIGS) == model_config.engine_names()


@pytest.fixture(params=CONFIGS)
def subject(request: pytest.FixtureRequest, start_subject: Callable[[str], Subject]) -> Subject:
    return start_subject(request.param)


def test_a_request_ends_with_one_final_answer(subject: Subject) -> None:
    subject.engine.submit("a", subject.short)

    answers = subject.answers("a")

    assert [is_final(answer) for answer in answers] == [False] * (len(answers) - 1) + [True]


def test_an_answer_is_taken_once_and_its_id_is_free_again(subject: Subject) -> None:
    subject.engine.submit("a", subject.short)
    first = subject.answers("a")

    assert subject.engine.take("a") == []
    subject.engine.submit("a", subject.short)
    assert _content(subject.answers("a")) == pytest.approx(_content(first), abs=1e-5)


def test_wait_tells_whether_there_is_something_to_take(subject: Subject) -> None:
    assert not subject.engine.wait(0.01)

    subject.engine.submit("a", subject.short)

    assert subject.engine.wait(TIMEOUT_S)
    subject.answers("a")
    assert not subject.engine.wait(0.01)


def test_a_request_of_the_wrong_kind_is_refused_and_not_kept(subject: Subject) -> None:
    with pytest.raises(BadRequest):
        subject.engine.submit("a", subject.wrong)

    assert subject.engine.take("a") == []
    subject.engine.submit("a", subject.short)
    subject.answers("a")


def test_a_cancelled_request_gives_nothing_and_disturbs_nobody(subject: Subject) -> None:
    subject.engine.submit("gone", subject.long)
    subject.engine.submit("stays", subject.short)

    subject.engine.cancel("gone")

    subject.answers("stays")
    assert subject.engine.take("gone") == []


def test_cancelling_what_is_not_there_is_ignored(subject: Subject) -> None:
    subject.engine.cancel("never was")
    subject.engine.submit("a", subject.short)
    subject.answers("a")
    subject.engine.cancel("a")


def test_the_id_of_a_cancelled_request_is_free_at_once(subject: Subject) -> None:
    subject.engine.submit("a", subject.short)
    expected = _content(subject.answers("a"))
    subject.engine.submit("a", subject.long)
    subject.engine.wait(TIMEOUT_S)

    subject.engine.cancel("a")
    subject.engine.submit("a", subject.short)

    assert _content(subject.answers("a")) == pytest.approx(expected, abs=1e-5)


def test_requests_at_the_same_time_are_all_answered(subject: Subject) -> None:
    names = [f"r{index}" for index in range(20)]
    for name in names:
        subject.engine.submit(name, subject.short)

    first, *others = map(_content, subject.answers_of(*names))
    for each in others:
        assert each == pytest.approx(first, abs=1e-5)


def test_a_repr_is_one_line(subject: Subject) -> None:
    assert "\n" not in repr(subject.engine)


@pytest.mark.parametrize("name", CONFIGS)
def test_closing_leaves_no_thread_and_no_process(name: str, root: Path, tmp_path: Path) -> None:
    threads, processes = set(threading.enumerate()), _children()
    subject = Subject(name, root, tmp_path / "model")
    subject.engine.submit("open", subject.long)

    subject.engine.close()

    assert set(threading.enumerate()) <= threads
    assert _children() <= processes


def _children() -> set[int]:
    return {each.pid for each in psutil.Process().children(recursive=True)}


def _content(answers: list[Answer]) -> Any:
    """What the answers say, however they were cut."""
    body = getattr(answers[-1], "body", None)
    if body is None:
        return [token for answer in answers for token in getattr(answer, "token_ids", ())]
    return [number for vector in body["embeddings"] for number in vector]
