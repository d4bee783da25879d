"""The random models that other tests run: varied, repeatable, and shaped like real checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file  # after the skip
from transformers import AutoModelForCausalLM, PretrainedConfig

from handlers.testing.random_model import main, write_random_model

FAMILIES = ("Llama", "Gemma", "Gemma2", "Gemma3Text", "GPT2", "Qwen2")


def small_config(family: str, **overrides: object) -> PretrainedConfig:
    settings: dict[str, object] = {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if family == "GPT2":
        del settings["num_key_value_heads"], settings["head_dim"]
    return getattr(transformers, family + "Config")(**settings | overrides)


def greedy_tokens(folder: Path, num_tokens: int) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    prompt = torch.tensor([[1, 17, 300, 42]])

    output = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        min_new_tokens=num_tokens,
        max_new_tokens=num_tokens,
        do_sample=False,
    )

    return output[0, prompt.size(1) :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_decoding_wanders_over_the_vocabulary(family: str, tmp_path: Path) -> None:
    write_random_model(small_config(family), tmp_path)

    assert len(set(greedy_tokens(tmp_path, 20))) >= 10


def test_the_same_seed_writes_the_same_weights(tmp_path: Path) -> None:
    config = small_config("Gemma")

    first = load_file(write_random_model(config, tmp_path / "a", seed=5) / "model.safetensors")
    second = load_file(write_random_model(config, tmp_path / "b", seed=5) / "model.safetensors")

    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_seed_writes_other_weights(tmp_path: Path) -> None:
    config = small_config("Gemma")

    first = load_file(write_random_model(config, tmp_path / "a", seed=5) / "model.safetensors")
    second = load_file(write_random_model(config, tmp_path / "b", seed=6) / "model.safetensors")

    assert not any(torch.equal(first[name], second[name]) for name in first)


def test_writing_a_model_leaves_the_callers_random_numbers_alone(tmp_path: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)

    torch.manual_seed(1)
    write_random_model(small_config("Llama"), tmp_path)

    assert torch.equal(torch.rand(3), expected)


def test_no_shard_is_larger_than_asked(tmp_path: Path) -> None:
    write_random_model(small_config("Llama"), tmp_path, max_shard_bytes=200_000)

    shards = list(tmp_path.glob("*.safetensors"))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert {shard.name for shard in shards} == set(index["weight_map"].values())
    assert len(shards) > 1
    assert all(sum(t.nbytes for t in load_file(shard).values()) <= 200_000 for shard in shards)


def test_weights_are_stored_in_the_precision_asked_for(tmp_path: Path) -> None:
    write_random_model(small_config("Llama"), tmp_path, dtype=torch.bfloat16)

    tensors = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"


def test_tied_embeddings_are_stored_once(tmp_path: Path) -> None:
    write_random_model(small_config("Llama", tie_word_embeddings=True), tmp_path)

    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")


def test_the_tokenizer_is_copied_with_its_settings(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "tokenizer.json").write_text("{}")
    (source / "tokenizer_config.json").write_text('{"a": 1}')

    write_random_model(small_config("Llama"), tmp_path / "out", tokenizer_from=source)

    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    assert (tmp_path / "out" / "tokenizer_config.json").read_text() == '{"a": 1}'


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no tokenizer"):
        write_random_model(small_config("Llama"), tmp_path, tokenizer_from=tmp_path / "nothing")


def test_the_command_writes_a_model_from_a_configuration_file(tmp_path: Path) -> None:
    small_config("Gemma").save_pretrained(tmp_path)

    main([str(tmp_path / "config.json"), str(tmp_path / "out"), "--seed", "3"])

    expected = write_random_model(small_config("Gemma"), tmp_path / "expected", seed=3)
    assert greedy_tokens(tmp_path / "out", 5) == greedy_tokens(expected, 5)
