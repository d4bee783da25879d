"""The pipeline plan that transformers has itself: ``generate`` in every rank, one batch at a time.

Batches that are padded on the left come out wrong (ranks behind the first take the length of the
mask from a layer they do not have), so the prompts must be of one length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, StoppingCriteriaList
from transformers.distributed.configuration_utils import DistributedConfig

from benchmarks.engine.contenders.base import Job, Run, Settings, num_tokens_of
from benchmarks.engine.contenders.generate import Clock
from benchmarks.engine.ranks import RankedContender


class Contender(RankedContender):
    def load(self, settings: Settings) -> None:
        model: Any = AutoModelForCausalLM.from_pretrained(
            settings.model,
            dtype=getattr(torch, settings.dtype),
            distributed_config=DistributedConfig(pp_size=settings.num_stages),
        )
        self._model = model.eval()

    def work(self, jobs: Sequence[Job]) -> Run:
        num_tokens = num_tokens_of(jobs)
        if len({len(job.prompt) for job in jobs}) > 1:
            raise ValueError("the prompts must be of one length: padded ones come out wrong")
        token_ids = torch.tensor([job.prompt for job in jobs])
        clock = Clock("cpu")
        with torch.inference_mode():
            answer = self._model.generate(
                token_ids,
                attention_mask=torch.ones_like(token_ids),
                max_new_tokens=num_tokens,
                do_sample=False,
                pad_token_id=0,
                stopping_criteria=StoppingCriteriaList([clock]),
            )
        tokens = answer[:, token_ids.shape[1] :].tolist()
        return Run(tokens, [clock.moments] * len(jobs))
