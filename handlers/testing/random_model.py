"""Writes a model with random weights: any decoder configuration, saved as a checkpoint is.

The weights are scaled so that greedy decoding wanders over the vocabulary. A freshly initialised
model repeats one token, and a test that compares two ways of running it proves nothing.

    python -m handlers.testing.random_model config.json folder --seed 3

It knows nothing of engines or stages; it needs torch and transformers.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

#: Quiet embeddings, so that a model whose output is tied to its input does not echo its last
#: token; matrices that are several times as large as a trained model's.
EMBEDDING_STD, MATRIX_STD = 0.002, 0.3
#: How far norms and biases stray from their resting value. A large bias would favour one token.
NORM_SPREAD, BIAS_SPREAD = 0.6, 0.1
#: What is added to the norms of queries and keys, where a model has them: they even out what
#: large matrices would do, and attention that weighs all tokens alike forgets which came last.
ATTENTION_NORM_LIFT = 2.0

#: What a tokenizer may consist of; a folder has some of them.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def write_random_model(
    config: PretrainedConfig,
    folder: Path,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    max_shard_bytes: int | None = None,
    tokenizer_from: Path | None = None,
) -> Path:
    """Write ``config.json`` and safetensors weights that depend on nothing but config and seed.

    Args:
        max_shard_bytes: the most one weight file holds; None writes a single file. A tensor that
            is larger gets a file of its own.
        tokenizer_from: a folder whose tokenizer files are copied; None copies none.

    Returns:
        ``folder``, which is created where it is missing.
    """
    with torch.random.fork_rng(devices=[]):
        # Building the model draws random numbers of its own, which the caller did not ask for.
        build = AutoModelForCausalLM.from_config
        model = build(config, dtype=torch.float32)  # type: ignore[no-untyped-call]  # upstream
    randomise_weights(model, seed)
    shard_size = sum(p.nbytes for p in model.parameters()) + 1
    model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_bytes or shard_size)
    if tokenizer_from is not None:
        copy_tokenizer(tokenizer_from, folder)
    return folder


@torch.no_grad()
def randomise_weights(model: nn.Module, seed: int) -> None:
    """Draw every parameter anew, in the order of the model's own list of them."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)
    }
    for name, parameter in model.named_parameters():
        if id(parameter) in embeddings:
            parameter.normal_(0.0, EMBEDDING_STD, generator=generator)
        elif parameter.ndim > 1:
            parameter.normal_(0.0, MATRIX_STD, generator=generator)
        else:
            # Norms rest at 0 in some models and at 1 in others; what they rest at stays.
            spread = BIAS_SPREAD if name.endswith("bias") else NORM_SPREAD
            strayed = torch.rand(parameter.shape, generator=generator) * 2 - 1
            parameter.add_(strayed * spread)
            if name.endswith(("q_norm.weight", "k_norm.weight")):
                parameter.add_(ATTENTION_NORM_LIFT)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer files that ``source`` has.

    Raises:
        FileNotFoundError: it has none.
    """
    found = [source / name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not found:
        raise FileNotFoundError(f"{source} holds no tokenizer: none of {TOKENIZER_FILES}")
    for path in found:
        shutil.copy(path, folder)


def main(command_line: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m handlers.testing.random_model",
        description="Write a model with random weights.",
    )
    parser.add_argument("config", type=Path, help="a config.json, or the folder of one")
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--max-shard-bytes", type=int, help="the most one weight file holds")
    parser.add_argument("--tokenizer-from", type=Path, help="a folder to copy a tokenizer from")
    arguments = parser.parse_args(command_line)
    write_random_model(
        AutoConfig.from_pretrained(arguments.config),
        arguments.out,
        seed=arguments.seed,
        dtype=getattr(torch, arguments.dtype),
        max_shard_bytes=arguments.max_shard_bytes,
        tokenizer_from=arguments.tokenizer_from,
    )


if __name__ == "__main__":
    main()
