"""Counting a prompt with the files a model's source has on this machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from handlers.model_config import Source
from scheduler.errors import StartupError
from scheduler.gateway.tokens import ByteCounter, TokenizerCounter, find_file, open_counter
from tests.integration.gateway_system import make_config


def test_the_demo_models_own_tokenizer_counts(demo_folder: Path) -> None:
    counter = open_counter(make_config("demo"))

    count = counter.count(["def f(x):", ""])

    # The sequence begins with <bos>, which the model reads too.
    assert count.num_tokens == (6, 1)
    assert count.is_exact


def test_the_vocabulary_is_the_models_not_the_tokenizers(tmp_path: Path, demo_folder: Path) -> None:
    shutil.copy(demo_folder / "tokenizer.json", tmp_path)
    without = open_counter(make_config("m", source=Source("folder", str(tmp_path))))
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 4096}))
    with_config = open_counter(make_config("m", source=Source("folder", str(tmp_path))))

    assert without.vocabulary_size == 2048
    assert with_config.vocabulary_size == 4096


def test_cutting_and_padding_of_a_tokenizer_file_are_not_counted(demo_folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(demo_folder / "tokenizer.json"))
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=50)

    counter = TokenizerCounter(tokenizer, 2048)

    assert counter.count(["def f(x):"]).num_tokens == (6,)


@pytest.mark.parametrize(
    "source",
    [
        Source("folder", "/no/such/folder"),
        Source("package", "no_such_package_at_all"),
        Source("package", "json", subfolder="no/such"),
        Source("hub", "plait-tests/no-such-model"),
        Source("http", "http://127.0.0.1/model"),
        Source("s3", "s3://bucket/model"),
    ],
    ids=lambda source: f"{source.kind} {source.location}",
)
def test_a_model_that_is_not_here_is_counted_in_bytes(source: Source) -> None:
    counter = open_counter(make_config("m", source=source))

    assert isinstance(counter, ByteCounter)
    assert counter.count(["ä€"]) == ByteCounter().count(["ä€"])
    assert counter.count(["ä€"]).num_tokens == (5,)
    assert not counter.count(["ä€"]).is_exact


def test_a_package_is_looked_into() -> None:
    assert find_file(Source("package", "json"), "decoder.py") is not None


def test_a_broken_tokenizer_is_not_overlooked(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")

    with pytest.raises(StartupError, match="cannot be used to count tokens"):
        open_counter(make_config("m", source=Source("folder", str(tmp_path))))
