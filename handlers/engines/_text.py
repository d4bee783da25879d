"""What the engines that generate text share: a model's tokenizer, its limits, how it is asked.

A request is read here once, in the caller's thread: into prompt tokens, and into how the tokens of
each of its answers are drawn. It knows a model's configuration and tokenizer files, not its
weights, and imports nothing that runs a model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from handlers.engines.base import Request
from handlers.model_config import ModelConfig
from handlers.pipeline.generation import Limits
from handlers.pipeline.step import Sampling
from handlers.wire import BadRequest, GenerationRequest


@dataclass(frozen=True, slots=True)
class TextModel:
    """A model as texts see it."""

    limits: Limits
    #: The Hugging Face tokenizer; encoding and decoding may be done by different threads.
    tokenizer: Any

    @classmethod
    def read(cls, config: ModelConfig, model_dir: Path) -> TextModel:
        """Read what ``model_dir`` says about texts.

        Raises:
            ValueError: ``max_context`` is longer than the model can look back.
        """
        text = AutoConfig.from_pretrained(model_dir).get_text_config(decoder=True)
        longest = getattr(text, "max_position_embeddings", None) or config.max_context
        if config.max_context > longest:
            raise ValueError(
                f"{config.name}: max_context is {config.max_context}; "
                f"the model has {longest} positions"
            )
        tokenizer = AutoTokenizer.from_pretrained(model_dir)
        # The first call lays down what the file says of padding and truncation. It must not
        # happen while another thread decodes: the tokenizer would refuse one of the two.
        tokenizer("")
        limits = Limits(config.max_context, text.vocab_size, _eos_token_ids(model_dir))
        return cls(limits, tokenizer)

    def tokenize(self, request: GenerationRequest) -> tuple[int, ...]:
        """The prompt's tokens, as the request gives them or as the tokenizer makes them."""
        if request.prompt_token_ids is not None:
            return request.prompt_token_ids
        return tuple(self.tokenizer(request.prompt or "")["input_ids"])

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens; special ones give none."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))


def generation_of(request: Request) -> GenerationRequest:
    """The request, if it asks for text.

    Raises:
        BadRequest: it asks for anything else.
    """
    if not isinstance(request, GenerationRequest):
        raise BadRequest("", "this model generates text; it makes no embeddings")
    return request


def sampling_of(request: GenerationRequest, index: int) -> Sampling:
    """How the tokens of the request's answer ``index`` are drawn."""
    return Sampling(
        temperature=request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
        seed=request.seed or 0,
        index=index,
        min_p=request.min_p,
        repetition_penalty=request.repetition_penalty,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        logit_bias=request.logit_bias,
        logprobs=request.logprobs,
        json_schema=request.json_schema,
        regex=request.regex,
    )


def _eos_token_ids(model_dir: Path) -> frozenset[int]:
    """All tokens that end an answer: what the files name for generation, else for the model."""
    if (model_dir / "generation_config.json").is_file():
        given = GenerationConfig.from_pretrained(model_dir).eos_token_id
    else:
        given = json.loads((model_dir / "config.json").read_text()).get("eos_token_id")
    if given is None:
        return frozenset()
    return frozenset(given if isinstance(given, list) else [given])
