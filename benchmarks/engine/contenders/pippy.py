"""accelerate's ``prepare_pippy``: a forward pass in micro-batches, used again for every token.

It has no cache, so each token computes all of its context anew. One traced pipeline fits one
shape, so the rows are padded on the right to the longest they will be; causal attention never
looks there. The number of micro-batches must be the number of rows: prepare_pippy pads any other
batch to a size that its trace does not take.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.inference import prepare_pippy
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.engine.contenders.base import Job, Run, Settings, num_tokens_of
from benchmarks.engine.ranks import RankedContender


class Contender(RankedContender):
    def load(self, settings: Settings) -> None:
        PartialState(cpu=True)
        self._settings = settings
        self._shape = (0, 0)

    def work(self, jobs: Sequence[Job]) -> Run:
        num_tokens = num_tokens_of(jobs)
        lengths = torch.tensor([len(job.prompt) for job in jobs])
        token_ids = torch.zeros(len(jobs), int(lengths.max()) + num_tokens, dtype=torch.long)
        for row, job in enumerate(jobs):
            token_ids[row, : len(job.prompt)] = torch.tensor(job.prompt)
        self._trace(token_ids)
        tokens: list[list[int]] = [[] for _ in jobs]
        moments: list[float] = []
        began = time.perf_counter()
        for _ in range(num_tokens):
            drawn = self._next(token_ids, lengths)
            token_ids[torch.arange(len(jobs)), lengths] = drawn
            lengths = lengths + 1
            moments.append(time.perf_counter() - began)
            for row, token in enumerate(drawn.tolist()):
                tokens[row].append(token)
        return Run(tokens, [moments] * len(jobs))

    def _trace(self, token_ids: Tensor) -> None:
        num_rows, width = token_ids.shape
        if self._shape == (num_rows, width):
            return
        model: Any = AutoModelForCausalLM.from_pretrained(
            self._settings.model, dtype=getattr(torch, self._settings.dtype)
        )
        model.eval()
        model.config.use_cache = False
        num_layers, num_stages = model.config.num_hidden_layers, self._settings.num_stages
        cuts = [num_layers * stage // num_stages for stage in range(1, num_stages)]
        # With gradients on, the trace breaks where the model itself turns them off.
        with torch.no_grad():
            self._model = prepare_pippy(
                model,
                split_points=[f"model.layers.{layer}" for layer in cuts],
                example_args=(token_ids[:1],),
                num_chunks=num_rows,
            )
        self._shape = (num_rows, width)

    def _next(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        """The token after each row: the last rank gets the logits and tells all."""
        with torch.no_grad():
            output = self._model(token_ids)
        drawn = torch.empty(len(lengths), dtype=torch.long)
        last = dist.get_world_size() - 1
        if self.rank == last:
            drawn = output[torch.arange(len(lengths)), lengths - 1].argmax(-1)
        dist.broadcast(drawn, src=last)
        return drawn
