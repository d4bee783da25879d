"""MiniLM split over real processes, against transformers' own unsplit model."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import encoder_rank
import pytest
import torch
from encoder_replica import ask, ranks

from handlers import model_config
from handlers.engines.base import Place
from handlers.engines.encoder import Engine
from handlers.pipeline import encoder_answers
from handlers.sources import resolve_source
from handlers.wire import BadRequest, ClassificationRequest, GenerationRequest

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "model_configs" / "minilm.yaml"
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "Wörter", "números")
#: One to 87 words, in no order.
TEXTS = [" ".join(WORDS[i % len(WORDS)] for i in range(n * 37 % 88)) or "one" for n in range(30)]
LONG = " ".join(f"word{i}" for i in range(2000))
ASIDE = {"blank": ["   "], "long": [LONG], "two": ["first", "second text, a little longer"]}

pytestmark = pytest.mark.timeout(120)


@cache
def unsplit() -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    folder = resolve_source(model_config.load(CONFIG))
    return AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)


def reference(texts: list[str]) -> tuple[Any, int]:
    """The vectors, and how many tokens they are made of."""
    config = model_config.load(CONFIG)
    tokenizer, model = unsplit()
    batch = tokenizer(
        texts, truncation=True, max_length=config.max_context, padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1).float()
    mean = (states * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
    return torch.nn.functional.normalize(mean, dim=1), batch["attention_mask"].sum().item()


def farthest(given: list[list[float]], texts: list[str]) -> float:
    """Largest difference of any number from the unsplit model's."""
    expected, _ = reference(texts)
    return float((torch.tensor(given) - expected).abs().max())


@pytest.fixture(scope="module")
def split() -> Iterator[subprocess.Popen[str]]:
    """Rank 0 of a replica of two."""
    with ranks(2, CONFIG) as processes:
        yield processes[0]


@pytest.fixture(scope="module")
def alone() -> Iterator[Engine]:
    config = replace(model_config.load(CONFIG), num_stages=1)
    engine = Engine.start(config, Place())
    yield engine
    engine.close()


def test_two_ranks_embed_a_ragged_batch_as_the_unsplit_model_does(split):
    answer = ask(split, {"batch": TEXTS})["batch"]

    assert farthest(answer["embeddings"], TEXTS) < 1e-5


def test_one_rank_embeds_a_ragged_batch_as_the_unsplit_model_does(alone):
    answer = encoder_rank.embed(alone, {"batch": TEXTS})["batch"]

    assert farthest(answer["embeddings"], TEXTS) < 1e-5


def test_requests_that_arrive_together_each_get_their_own_vectors(split):
    answers = ask(split, {str(i): [text] for i, text in enumerate(TEXTS)})

    given = [answers[str(i)]["embeddings"][0] for i in range(len(TEXTS))]
    assert farthest(given, TEXTS) < 1e-5


def test_a_text_of_no_tokens_of_its_own_has_a_vector(split):
    answer = ask(split, ASIDE)["blank"]

    assert answer["num_input_tokens"] == 2
    assert farthest(answer["embeddings"], ASIDE["blank"]) < 1e-5


def test_a_text_that_is_too_long_is_cut_as_the_reference_cuts_it(split):
    answer = ask(split, ASIDE)["long"]

    assert answer["num_input_tokens"] == 256
    assert farthest(answer["embeddings"], ASIDE["long"]) < 1e-5


def test_tokens_are_counted_without_padding(split):
    answer = ask(split, {"batch": TEXTS})["batch"]

    assert answer["num_input_tokens"] == reference(TEXTS)[1]


def test_a_small_request_is_answered_while_a_large_one_is_worked_on(alone):
    alone.submit("large", encoder_rank.EmbeddingRequest(("a few words",) * 2000))
    answers = encoder_rank.embed(alone, {"small": ["a few words"]})

    assert answers["small"]["embeddings"]
    assert alone.take("large") == []
    alone.cancel("large")


@pytest.mark.parametrize("request_type", [GenerationRequest, ClassificationRequest])
def test_what_asks_for_something_else_is_refused(request_type, alone):
    with pytest.raises(BadRequest, match="embeds texts"):
        alone.submit("wrong", request_type(("once",)))


def test_an_answer_that_could_not_be_carried_is_refused_at_the_door(alone, monkeypatch):
    monkeypatch.setattr(encoder_answers, "MAX_ANSWER_BYTES", 100_000)

    alone.submit("fits", encoder_rank.EmbeddingRequest(("a",) * 10))
    alone.cancel("fits")
    with pytest.raises(BadRequest, match=r"holds 11 texts; .* allowed are 10") as refused:
        alone.submit("large", encoder_rank.EmbeddingRequest(("a",) * 11))
    assert refused.value.status == 413


def test_a_context_longer_than_the_model_has_is_refused():
    config = replace(model_config.load(CONFIG), num_stages=1, max_context=513)

    with pytest.raises(ValueError, match="takes 512 tokens"):
        Engine.start(config, Place())


def test_a_decoder_is_refused_by_name():
    source = model_config.Source("folder", str(ROOT / "models" / "demo"))
    config = replace(model_config.load(CONFIG), num_stages=1, source=source)

    with pytest.raises(ValueError, match="gemma model, which the encoder engine cannot split"):
        Engine.start(config, Place())


@pytest.mark.parametrize("lost", [0, 1])
def test_the_other_rank_ends_when_one_is_killed(lost):
    with ranks(2, CONFIG) as processes:
        processes[lost].kill()

        assert processes[1 - lost].wait(40) != 0
