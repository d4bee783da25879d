"""``generate`` of transformers: the whole model in one process, all prompts in one padded batch.

On a GPU it has a static cache, for which transformers compiles the decoding step by itself.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList

from benchmarks.engine.contenders import base
from benchmarks.engine.contenders.base import Job, Run, Settings, num_tokens_of


class Clock(StoppingCriteria):
    """Is asked after every token; notes the time and never stops anything."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._began = self._now()
        self.moments: list[float] = []

    def __call__(self, input_ids: Tensor, _: Tensor, **__: Any) -> Tensor:
        self.moments.append(self._now() - self._began)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def _now(self) -> float:
        # Without a sync a GPU's step would count as done when it is queued; generate itself
        # looks at each step's result before it goes on, so this costs it nothing.
        if self._device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()


class Contender(base.Contender):
    def __init__(self, settings: Settings) -> None:
        self._device = "cpu" if settings.device == "cpu" else "cuda"
        dtype = getattr(torch, settings.dtype)
        model: Any = AutoModelForCausalLM.from_pretrained(settings.model, dtype=dtype)
        self._model = model.eval().to(self._device)
        self._more = {} if self._device == "cpu" else {"cache_implementation": "static"}

    def run(self, jobs: Sequence[Job]) -> Run:
        num_tokens = num_tokens_of(jobs)
        token_ids, mask = padded([job.prompt for job in jobs])
        clock = Clock(self._device)
        with torch.inference_mode():
            answer = self._model.generate(
                token_ids.to(self._device),
                attention_mask=mask.to(self._device),
                max_new_tokens=num_tokens,
                do_sample=False,
                pad_token_id=0,
                stopping_criteria=StoppingCriteriaList([clock]),
                **self._more,
            )
        tokens = answer[:, token_ids.shape[1] :].tolist()
        return Run(tokens, [clock.moments] * len(jobs))

    def close(self) -> None:
        del self._model


def padded(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids and mask, both [prompts, longest], padded on the left."""
    longest = max(map(len, prompts))
    rows = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(rows), torch.tensor(mask)
