"""The computing: one sequence at a time through a whole model, tokens drawn with torch."""

from __future__ import annotations

from typing import Any

import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from vllm.engine_args import AsyncEngineArgs
from vllm.outputs import Logprob
from vllm.sampling_params import SamplingParams


class Core:
    """A model, and what grammars need of its tokenizer."""

    def __init__(self, args: AsyncEngineArgs) -> None:
        self.args = args
        dtype = getattr(torch, args.dtype)
        loaded: Any = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype)
        self.model = loaded.eval()
        self._words: LLTokenizer | None = None

    def words(self) -> LLTokenizer:
        if self._words is None:
            self._words = from_tokenizer(AutoTokenizer.from_pretrained(self.args.model))
        return self._words


class Request:
    """One sequence in the making."""

    def __init__(self, core: Core, prompt: list[int], params: SamplingParams) -> None:
        self._core, self._prompt, self._params = core, prompt, params
        self._cache: Any = None
        self._output: list[int] = []
        self._generator = torch.Generator()
        if params.seed is not None:
            self._generator.manual_seed(params.seed)
        self._matcher = _matcher(core, params)
        self.finish_reason: str | None = None
        self.stop_reason: int | None = None

    @torch.inference_mode()
    def step(self) -> tuple[int, dict[int, Logprob] | None]:
        """The next token, and log probabilities of the model's own distribution."""
        pending = self._output[-1:] or self._prompt
        out = self._core.model(
            input_ids=torch.tensor([pending]), past_key_values=self._cache, use_cache=True
        )
        self._cache = out.past_key_values
        raw = out.logits[0, -1].float()
        token_id = self._draw(raw.clone())
        self._output.append(token_id)
        self._check_stop(token_id)
        return token_id, _logprobs(raw, token_id, self._params.logprobs)

    def _draw(self, logits: Tensor) -> int:
        how = self._params
        self._penalise(logits)
        for token_id, bias in (how.logit_bias or {}).items():
            logits[token_id] += bias
        if self._matcher is not None:
            allowed = torch.tensor(list(self._matcher.compute_bitmask()))
            bits = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128])
            mask = ((allowed[:, None] & bits) > 0).flatten()[: len(logits)]
            logits[~mask] = -torch.inf
        token_id = int(logits.argmax()) if how.temperature < 1e-5 else self._sample(logits)
        if self._matcher is not None:
            self._matcher.consume_token(token_id)
        return token_id

    def _penalise(self, logits: Tensor) -> None:
        how = self._params
        seen = torch.tensor(sorted({*self._prompt, *self._output}))
        values = logits[seen]
        factor = how.repetition_penalty
        logits[seen] = torch.where(values > 0, values / factor, values * factor)
        counts = torch.bincount(torch.tensor(self._output, dtype=torch.long), minlength=len(logits))
        logits -= how.frequency_penalty * counts + how.presence_penalty * (counts > 0)

    def _sample(self, logits: Tensor) -> int:
        how = self._params
        logits /= how.temperature
        if 0 < how.top_k < len(logits):
            logits[logits < logits.topk(how.top_k).values[-1]] = -torch.inf
        ordered, order = logits.softmax(-1).sort(descending=True, stable=True)
        logits[order[ordered.cumsum(-1) - ordered > how.top_p]] = -torch.inf
        likely = logits.softmax(-1)
        likely[likely < how.min_p * likely.max()] = 0.0
        noise = torch.empty_like(likely).exponential_(generator=self._generator)
        return int((likely / noise).argmax())

    def _check_stop(self, token_id: int) -> None:
        how, args = self._params, self._core.args
        num_tokens = len(self._prompt) + len(self._output)
        is_full = args.max_model_len is not None and num_tokens >= args.max_model_len
        if token_id == self._core.model.config.eos_token_id and not how.ignore_eos:
            self.finish_reason = "stop"
        elif token_id in (how.stop_token_ids or ()):
            self.finish_reason, self.stop_reason = "stop", token_id
        elif is_full or len(self._output) == how.max_tokens:
            self.finish_reason = "length"


def _matcher(core: Core, params: SamplingParams) -> LLMatcher | None:
    wanted = params.structured_outputs
    if wanted is None:
        return None
    if wanted.json is not None:
        return LLMatcher(core.words(), LLMatcher.grammar_from_json_schema(wanted.json))
    return LLMatcher(core.words(), LLMatcher.grammar_from_regex(wanted.regex or ""))


def _logprobs(logits: Tensor, token_id: int, count: int | None) -> dict[int, Logprob] | None:
    if count is None:
        return None
    likely = logits.log_softmax(-1)
    rank = int((likely >= likely[token_id]).sum())
    found = {token_id: Logprob(float(likely[token_id]), rank)}
    values, token_ids = likely.topk(count)
    for place, (value, other) in enumerate(zip(values.tolist(), token_ids.tolist(), strict=True)):
        found.setdefault(other, Logprob(value, place + 1))
    return found
