"""What every contender is given: a llama-shaped model of seeded weights and mixed prompts.

A model is made once and kept in the cache folder, with a tokenizer of made-up merges, so that
turning tokens into text costs what it costs a real model. Prompts are token ids; their lengths
differ by up to three times and every eight of them have the mean that was asked for.
"""

from __future__ import annotations

import random
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

#: Lengths of eight neighbouring prompts, in parts of the mean.
MIXTURE = (0.5, 1.5, 0.75, 1.25, 1.0, 0.625, 1.375, 0.875)
LONGEST_TOKEN_CHARS = 8


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a decoder that decide what a step reads and computes."""

    name: str
    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int = 4096
    #: The output matrix is the embedding table: a step reads it all the same.
    tie_word_embeddings: bool = False
    family: str = "llama"

    @property
    def parameters_a_step_reads(self) -> int:
        """Weights of all matrices; of the embedding table a step reads a few rows only."""
        attention = 2 * self.num_attention_heads + 2 * self.num_key_value_heads
        layer = self.hidden_size * (attention * self.head_dim + 3 * self.intermediate_size)
        return self.num_hidden_layers * layer + self.vocab_size * self.hidden_size

    def cache_values(self, num_tokens: int) -> int:
        """Keys and values of so many tokens, counted in numbers."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * num_tokens


LLAMA_200M = Shape("llama-200m", 1024, 12, 2816, 16, 4, 64, 32_000)
LLAMA_TINY = Shape("llama-tiny", 256, 4, 512, 4, 2, 64, 1_024)
GEMMA_2B = Shape(
    "gemma-2b", 2048, 18, 16_384, 8, 1, 256, 256_000, tie_word_embeddings=True, family="gemma"
)


def model_folder(shape: Shape, cache: Path, dtype: str = "float32") -> Path:
    """The folder of the model, which is made when it is missing."""
    folder = cache / f"{shape.name}-{dtype}"
    if folder.is_dir():
        return folder
    import torch
    from transformers import AutoConfig

    from handlers.testing.random_model import write_random_model

    sizes = asdict(shape)
    family = sizes.pop("family")
    sizes.pop("name")
    config = AutoConfig.for_model(
        family, **sizes, bos_token_id=None, eos_token_id=None, pad_token_id=None
    )
    unfinished = folder.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    write_random_model(config, unfinished, seed=1, dtype=getattr(torch, dtype))
    _write_tokenizer(unfinished, shape.vocab_size)
    unfinished.rename(folder)
    return folder


def _write_tokenizer(folder: Path, vocab_size: int) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    draw = random.Random(1)
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: token for token, piece in enumerate(pieces)}
    merges: list[tuple[str, str]] = []
    while len(pieces) < vocab_size:
        pair = (draw.choice(pieces), draw.choice(pieces))
        joined = "".join(pair)
        if len(joined) <= LONGEST_TOKEN_CHARS and joined not in vocabulary:
            vocabulary[joined] = len(pieces)
            pieces.append(joined)
            merges.append(pair)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=tokenizer).save_pretrained(folder)


def mixed_prompts(num: int, mean: int, vocab_size: int, seed: int = 1) -> list[list[int]]:
    """``num`` prompts of mixed lengths."""
    draw = random.Random(seed)
    lengths = [max(1, round(mean * MIXTURE[index % len(MIXTURE)])) for index in range(num)]
    return [_prompt(length, vocab_size, draw) for length in lengths]


def equal_prompts(num: int, length: int, vocab_size: int, seed: int = 2) -> list[list[int]]:
    """``num`` prompts of one length."""
    draw = random.Random(seed)
    return [_prompt(length, vocab_size, draw) for _ in range(num)]


def _prompt(length: int, vocab_size: int, draw: random.Random) -> list[int]:
    return [draw.randrange(vocab_size) for _ in range(length)]
