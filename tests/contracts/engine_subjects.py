"""The engines of the contract tests: each over a small model, with requests that suit it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from transformers import GemmaConfig

from handlers import model_config
from handlers.engines.base import Answer, Engine, Place, Request, is_final
from handlers.lifecycle import start_engine
from handlers.model_config import ModelConfig
from handlers.testing.random_model import write_random_model
from handlers.wire import (
    Chunk,
    EmbeddingRequest,
    Finish,
    GenerationRequest,
    TokenLogprob,
    join,
)

TIMEOUT_S = 30.0


def _text_model(root: Path, folder: Path) -> ModelConfig:
    config = GemmaConfig(
        vocab_size=2048, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, max_position_embeddings=1024,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    if not folder.exists():
        write_random_model(config, folder, tokenizer_from=root / "models" / "demo")
    demo = model_config.load(root / "model_configs" / "demo.yaml")
    return replace(
        demo, source=replace(demo.source, location=str(folder)), num_stages=1, has_standby=False
    )


def _vllm(root: Path, folder: Path) -> ModelConfig:
    if (doubles := str(root / "tests" / "doubles")) not in sys.path:
        sys.path.insert(0, doubles)
    return _text_model(root, folder)


def _encoder(root: Path, folder: Path) -> ModelConfig:
    return replace(model_config.load(root / "model_configs" / "minilm.yaml"), num_stages=1)


#: How to configure each engine; an engine that is missing here fails the first test.
CONFIGS: dict[str, Callable[[Path, Path], ModelConfig]] = {
    "pipelined": _text_model,
    "transformers": _text_model,
    "vllm": _vllm,
    "encoder": _encoder,
}
TEXT_ENGINES = ("pipelined", "transformers", "vllm")
#: Text engines whose draws are Plait's: their noise depends on seed, answer and position only.
SHARED_DRAWS = ("pipelined", "transformers")


@dataclass
class Said:
    """Everything that came for a request, however it was cut."""

    answers: list[Answer]
    #: What each of the request's answers was, by its index.
    parts: dict[int, Chunk] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for answer in self.answers:
            if isinstance(answer, Chunk):
                known = self.parts.get(answer.index)
                self.parts[answer.index] = answer if known is None else join(known, answer)

    @property
    def finish(self) -> Finish:
        assert isinstance(self.answers[-1], Finish), self.answers[-1]
        return self.answers[-1]

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.parts[0].token_ids if self.parts else ()

    @property
    def text(self) -> str:
        return self.parts[0].text if self.parts else ""

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...]:
        return self.parts[0].logprobs


class Subject:
    """An engine with requests it serves, one that takes long, and one of the wrong kind."""

    def __init__(self, name: str, root: Path, folder: Path) -> None:
        torch.set_num_threads(1)
        self.name = name
        self.config = replace(CONFIGS[name](root, folder), engine=name)
        self.engine: Engine = start_engine(self.config, Place())
        self.short: Request = GenerationRequest("def ", max_new_tokens=5, ignore_eos=True)
        self.long: Request = GenerationRequest("def ", max_new_tokens=900, ignore_eos=True)
        self.wrong: Request = EmbeddingRequest(("a text",))
        if self.config.task == "embed":
            self.short, self.wrong = self.wrong, self.short
            self.long = EmbeddingRequest(("a text of many words " * 40,) * 200)

    def answers(self, request_id: str) -> list[Answer]:
        """Everything up to the final answer."""
        return self.answers_of(request_id)[0]

    def answers_of(self, *request_ids: str) -> list[list[Answer]]:
        """Of several open requests: everything up to the final answer of each.

        All are taken from at every turn, as the handler does: while one has answers nobody takes,
        ``wait`` returns at once, and a loop around it would keep the engine from its processor.
        """
        answers: dict[str, list[Answer]] = {request_id: [] for request_id in request_ids}
        until = time.monotonic() + TIMEOUT_S
        while missing := [name for name, got in answers.items() if not _is_complete(got)]:
            assert time.monotonic() < until, f"no final answer to {missing} among {answers}"
            self.engine.wait(0.1)
            for request_id in missing:
                answers[request_id] += self.engine.take(request_id)
        return list(answers.values())

    def say(self, request: Request) -> Said:
        """Ask and wait for all of it."""
        self.engine.submit("said", request)
        try:
            return Said(self.answers("said"))
        finally:
            self.engine.cancel("said")


def _is_complete(answers: list[Answer]) -> bool:
    return bool(answers) and is_final(answers[-1])
