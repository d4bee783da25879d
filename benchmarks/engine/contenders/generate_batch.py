"""``generate_batch`` of transformers: its continuous batching, in one process.

Its cache is sized for the jobs; left alone it would take most of the memory and seconds to make.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from benchmarks.engine.contenders import base
from benchmarks.engine.contenders.base import Job, Run, Settings, num_tokens_of

PAGE_SIZE = 32
MAX_BATCH_TOKENS = 256


class Contender(base.Contender):
    def __init__(self, settings: Settings) -> None:
        dtype = getattr(torch, settings.dtype)
        model: Any = AutoModelForCausalLM.from_pretrained(
            settings.model, dtype=dtype, attn_implementation="sdpa"
        )
        self._model = model.eval()

    def run(self, jobs: Sequence[Job]) -> Run:
        num_tokens = num_tokens_of(jobs)
        pages = sum(-(-(len(job.prompt) + num_tokens) // PAGE_SIZE) for job in jobs)
        how: Any = GenerationConfig(  # type: ignore[no-untyped-call]  # upstream
            max_new_tokens=num_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        began = time.perf_counter()
        answers = self._model.generate_batch(
            [list(job.prompt) for job in jobs],
            generation_config=how,
            continuous_batching_config=ContinuousBatchingConfig(
                num_blocks=pages + len(jobs),
                page_size=PAGE_SIZE,
                max_batch_tokens=MAX_BATCH_TOKENS,
            ),
            record_timestamps=True,
        )
        # The order of the answers is that of the prompts.
        outputs = list(answers.values())
        if len(outputs) != len(jobs) or any(output.error for output in outputs):
            raise RuntimeError(f"generate_batch failed: {[o.error for o in outputs]}")
        arrivals = [[moment - began for moment in output.timestamps] for output in outputs]
        return Run([list(output.generated_tokens) for output in outputs], arrivals)

    def close(self) -> None:
        del self._model
