"""The transformers engine runs models that keep keys and values, a state, or nothing at all."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma3TextConfig,
    Mamba2Config,
    MambaConfig,
    OpenAIGPTConfig,
    PretrainedConfig,
    RwkvConfig,
)

from handlers import model_config
from handlers.engines._whole import WholeModel
from handlers.engines.base import Engine, Place
from handlers.lifecycle import start_engine
from handlers.model_config import ModelConfig
from handlers.outbox import is_final
from handlers.testing.random_model import write_random_model
from handlers.wire import Chunk, GenerationRequest, join

SIZES = {"vocab_size": 2048, "hidden_size": 32, "num_hidden_layers": 2}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
ATTENTION = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
FAMILIES: dict[str, PretrainedConfig] = {
    "sliding windows": Gemma3TextConfig(
        **SIZES, **TOKENS, **ATTENTION, intermediate_size=64, sliding_window=16,
        max_position_embeddings=256,
    ),
    "alibi": BloomConfig(vocab_size=2048, hidden_size=32, n_layer=2, n_head=2, **TOKENS),
    "mamba": MambaConfig(**SIZES, **TOKENS, state_size=4),
    "mamba2": Mamba2Config(
        **SIZES, **TOKENS, state_size=8, num_heads=4, head_dim=16, n_groups=1, chunk_size=8
    ),
    "rwkv": RwkvConfig(**SIZES, **TOKENS, context_length=256),
    "no cache": OpenAIGPTConfig(vocab_size=2048, n_embd=32, n_layer=2, n_head=2, n_positions=256),
}  # fmt: skip
#: Longer than the chunks of 16 tokens that prompts are read in.
PROMPT = "for index in range(10):\n    print(index)\n" * 3
#: With a penalty, so that small random models do not say one word again and again.
PENALTY = 4.0
REQUEST = GenerationRequest(PROMPT, max_new_tokens=20, ignore_eos=True, repetition_penalty=PENALTY)


class Model:
    """A family's random model, its engine, and what transformers' own generate says."""

    def __init__(self, config: PretrainedConfig, root: Path, folder: Path) -> None:
        torch.set_num_threads(1)
        self.folder = write_random_model(
            config, folder, seed=2, tokenizer_from=root / "models" / "demo"
        )
        self.engine: Engine = start_engine(_config(root, self.folder), Place())

    def say(self, request: GenerationRequest) -> Chunk:
        """The whole answer in one piece."""
        self.engine.submit("a", request)
        answers = []
        while not (answers and is_final(answers[-1])):
            assert self.engine.wait(30)
            answers += self.engine.take("a")
        return functools.reduce(join, [each for each in answers if isinstance(each, Chunk)])

    def generated(self, prompt: list[int]) -> list[int]:
        model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
        model.generation_config.eos_token_id = None
        output = model.generate(
            torch.tensor([prompt]), max_new_tokens=20, do_sample=False, repetition_penalty=PENALTY
        )
        return list(output[0].tolist()[len(prompt) :])


def _config(root: Path, folder: Path) -> ModelConfig:
    demo = model_config.load(root / "model_configs" / "demo.yaml")
    source = replace(demo.source, location=str(folder))
    return replace(
        demo, source=source, engine="transformers", num_stages=1, max_context=256, prefill_chunk=16
    )


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, root: Path) -> Iterator[Model]:
    with tempfile.TemporaryDirectory() as folder:
        model = Model(FAMILIES[request.param], root, Path(folder))
        yield model
        model.engine.close()


def test_greedy_tokens_are_those_of_generate(model: Model, demo_folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo_folder)
    prompt = list(tokenizer(PROMPT)["input_ids"])

    token_ids = model.say(REQUEST).token_ids

    assert len(set(token_ids)) > 6
    assert list(token_ids) == model.generated(prompt)


def test_a_sampled_answer_goes_on_to_the_bit(model: Model) -> None:
    request = replace(REQUEST, temperature=0.8, seed=5, logprobs=2)
    whole = model.say(request)

    rest = model.say(replace(request, generated=whole.token_ids[:7]))

    assert rest.token_ids == whole.token_ids[7:]
    assert rest.logprobs == whole.logprobs[7:]


def test_a_model_that_keeps_nothing_reads_everything_again(root: Path, tmp_path: Path) -> None:
    write_random_model(FAMILIES["no cache"], tmp_path)

    model = WholeModel.load(tmp_path, torch.float32, "cpu")

    assert (model.remembers, model.takes_chunks) == (False, False)


def test_several_ranks_are_refused(root: Path) -> None:
    config = replace(_config(root, root / "models" / "demo"), num_stages=2)

    with pytest.raises(ValueError, match="nproc-per-node to 1, not 2"):
        start_engine(config, Place())


def test_weights_that_are_missing_are_named(root: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    write_random_model(FAMILIES["alibi"], tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    lost = next(name for name in tensors if "ln_f" in name)
    del tensors[lost]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})

    with pytest.raises(ValueError, match="ln_f"):
        WholeModel.load(tmp_path, torch.float32, "cpu")
