"""Classifiers with random weights, on one rank and on two, against transformers' own pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import encoder_rank
import pytest
import transformers
from encoder_replica import ask, ranks

from handlers import model_config
from handlers.engines.base import Place
from handlers.engines.encoder import Engine
from handlers.sources import resolve_source
from handlers.testing.random_model import copy_tokenizer, randomise_weights
from handlers.wire import BadRequest, ClassificationRequest, EmbeddingRequest

ROOT = Path(__file__).parents[2]
MINILM = ROOT / "model_configs" / "minilm.yaml"
TEXTS = ["one", "a few more words than that", " ".join(f"word{i}" for i in range(60)), "Wörter"]
YAML = """
deviceType: cpu
parallelType: pp
torchrun:
  nproc-per-node: {num_ranks}
  rdzv-endpoint: "localhost:0"
continuousBatching: true
batchSize: 8
plait:
  task: classify
  source:
    folder: {folder}
  engine: encoder
  dtype: float32
  max_context: 64
"""

pytestmark = pytest.mark.timeout(120)


def write_classifier(folder: Path, family: str = "Bert", **settings: Any) -> Path:
    config = getattr(transformers, family + "Config")(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        vocab_size=30522, max_position_embeddings=64, pad_token_id=0, **settings,
    )  # fmt: skip
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    randomise_weights(model, 3)
    model.save_pretrained(folder)
    copy_tokenizer(resolve_source(model_config.load(MINILM)), folder)
    return folder


def write_yaml(folder: Path, num_ranks: int) -> Path:
    path = folder / "classifier.yaml"
    path.write_text(YAML.format(folder=folder, num_ranks=num_ranks))
    return path


def expected(folder: Path) -> list[dict[str, float]]:
    """By transformers' pipeline: the score of each label, for each text."""
    classify = transformers.pipeline("text-classification", model=str(folder))
    found = classify(TEXTS, top_k=None, truncation=True, max_length=64)
    return [{each["label"]: each["score"] for each in one} for one in found]


def assert_same(answer: dict[str, Any], folder: Path) -> None:
    wanted = expected(folder)
    for labels, scores, one in zip(answer["labels"], answer["scores"], wanted, strict=True):
        assert dict(zip(labels, scores, strict=True)) == pytest.approx(one, abs=1e-5)
        assert scores == sorted(scores, reverse=True)
    assert len({labels[0] for labels in answer["labels"]}) > 1 or len(wanted[0]) == 1
    assert answer["num_input_tokens"] > len(TEXTS)


@pytest.fixture
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    write_classifier(tmp_path, **request.param)
    engine = Engine.start(model_config.load(write_yaml(tmp_path, 1)), Place())
    yield engine
    engine.close()


SORTS: list[dict[str, Any]] = [
    {"num_labels": 2},
    {"num_labels": 3, "id2label": {0: "bad", 1: "so so", 2: "good"}},
    {"num_labels": 3, "problem_type": "multi_label_classification"},
    {"num_labels": 1, "problem_type": "regression"},
]


@pytest.mark.parametrize("engine", SORTS, indirect=True)
def test_one_rank_labels_texts_as_transformers_does(engine: Engine, tmp_path: Path) -> None:
    answers = encoder_rank.embed(engine, {"all": TEXTS}, ClassificationRequest)

    assert_same(answers["all"], tmp_path)


@pytest.mark.parametrize("sort", SORTS[:2])
def test_two_ranks_label_texts_as_transformers_does(sort: dict[str, Any], tmp_path: Path) -> None:
    write_classifier(tmp_path, **sort)

    with ranks(2, write_yaml(tmp_path, 2)) as processes:
        answers = ask(processes[0], {"all": TEXTS, "one": TEXTS[1:2]})

    assert_same(answers["all"], tmp_path)
    assert answers["one"]["labels"] == answers["all"]["labels"][1:2]


@pytest.mark.parametrize("engine", [{"num_labels": 2}], indirect=True)
def test_an_embedding_is_refused(engine: Engine) -> None:
    with pytest.raises(BadRequest, match="classifies texts"):
        engine.submit("wrong", EmbeddingRequest(("once",)))


def test_an_encoder_that_cannot_be_cut_is_refused_at_start(tmp_path: Path) -> None:
    write_classifier(tmp_path, "Albert", num_labels=2)
    config = model_config.load(write_yaml(tmp_path, 1))

    with pytest.raises(ValueError, match="AlbertModel has no list"):
        Engine.start(config, Place())
