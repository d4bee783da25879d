"""The demo model: small, loadable as published, true to text, and as good as its card says."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer  # after the skip


@pytest.fixture(scope="module")
def tokenizer(demo_folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(demo_folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def model(demo_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(demo_folder, dtype=torch.float32).eval()


def card_number(demo_folder: Path, label: str) -> float:
    """Read the number of a row of the card's table."""
    card = (demo_folder / "README.md").read_text(encoding="utf-8")
    match = re.search(rf"^\| {re.escape(label)}[^|]*\| ([\d.]+)", card, re.MULTILINE)
    assert match, f"the card has no row {label!r}"
    return float(match[1])


def continuation(model: Any, tokenizer: Tokenizer, prompt: str, num_tokens: int) -> list[int]:
    ids = torch.tensor([tokenizer.encode(prompt).ids])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        min_new_tokens=num_tokens,
        max_new_tokens=num_tokens,
        do_sample=False,
    )
    return output[0, ids.size(1) :].tolist()


def test_it_fits_in_twelve_megabytes(demo_folder: Path) -> None:
    assert sum(path.stat().st_size for path in demo_folder.iterdir()) <= 12_000_000


def test_it_is_a_gemma_with_tied_embeddings_that_can_be_cut_into_stages(model: Any) -> None:
    assert model.config.model_type == "gemma"
    assert model.config.tie_word_embeddings
    assert 6 <= model.config.num_hidden_layers <= 12


@pytest.mark.parametrize("index", range(8))
def test_leaving_out_any_layer_changes_the_logits(
    model: Any, tokenizer: Tokenizer, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.tensor([tokenizer.encode("def read_file(path):\n    return open(path)").ids])
    with torch.inference_mode():
        whole = model(ids).logits
        monkeypatch.setattr(model.model.layers[index], "forward", lambda states, **_: states)
        without = model(ids).logits

    assert (whole - without).abs().max() > 0.01


@given(st.text(st.characters(codec="utf-8"), max_size=200))
@settings(deadline=None)
def test_any_text_comes_back_from_its_tokens(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids

    assert tokenizer.decode(ids, skip_special_tokens=False) == text


@given(st.binary(max_size=100))
@settings(deadline=None)
def test_what_broken_bytes_decode_to_comes_back(tokenizer: Tokenizer, data: bytes) -> None:
    text = data.decode("utf-8", errors="replace")

    ids = tokenizer.encode(text, add_special_tokens=False).ids

    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_every_byte_has_a_token(tokenizer: Tokenizer) -> None:
    alphabet = {token for token in tokenizer.get_vocab() if len(token) == 1}

    assert len(alphabet) == 256


def test_encoding_puts_bos_first_once(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("import os\n").ids

    assert tokenizer.id_to_token(ids[0]) == "<bos>"
    assert ids.count(ids[0]) == 1


def test_both_libraries_read_the_tokenizer_alike(demo_folder: Path, tokenizer: Tokenizer) -> None:
    text = "class Queue:\n\n    def put(self, item):  # naïve \t\r\n        pass\n"

    theirs = AutoTokenizer.from_pretrained(demo_folder)

    assert theirs(text)["input_ids"] == tokenizer.encode(text).ids
    assert theirs.decode(tokenizer.encode(text).ids, skip_special_tokens=True) == text


def test_the_special_tokens_are_those_of_the_configuration(
    model: Any, tokenizer: Tokenizer
) -> None:
    config = model.config

    names = [tokenizer.id_to_token(i) for i in (config.pad_token_id, config.bos_token_id)]
    assert [*names, tokenizer.id_to_token(config.eos_token_id)] == ["<pad>", "<bos>", "<eos>"]
    assert tokenizer.get_vocab_size() == config.vocab_size


def test_greedy_decoding_does_not_repeat_one_token(model: Any, tokenizer: Tokenizer) -> None:
    tokens = continuation(model, tokenizer, "def ", 40)

    assert len(set(tokens)) > 10
    assert "�" not in tokenizer.decode(tokens)


def test_the_card_counts_the_parameters(demo_folder: Path, model: Any) -> None:
    assert model.num_parameters() / 1e6 == pytest.approx(
        card_number(demo_folder, "parameters"), abs=0.01
    )


def test_the_held_out_loss_is_what_the_card_says(
    root: Path,
    demo_folder: Path,
    model: Any,
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if ".".join(platform.python_version_tuple()[:2]) != "3.11":
        pytest.skip("another Python's standard library is another text")
    monkeypatch.syspath_prepend(root / "models")
    import demo_text
    import train_demo

    stream = demo_text.encode_documents(tokenizer, demo_text.read_corpus().held_out)
    loss = train_demo.evaluate(model, tokenizer, stream, max_windows=16)

    expected = card_number(demo_folder, "held-out sample")
    assert loss.nats_per_token == pytest.approx(expected, abs=0.1)
