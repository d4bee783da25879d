"""Takes steps through an encoder's ranks with torch's GPipe schedule.

Rank 0 decides what comes next and announces each step to the others: its shape and the lengths of
its rows. That is all they need to build the attention mask and the buffers; hidden states then
travel from rank to rank, one micro-batch behind the other, and the last rank sends each text's
vector, or its numbers by label, to rank 0. Rank 0 may announce the next step while earlier ones are
still on their way.

torch sizes a stage's buffers once, so there is one stage and schedule per shape; the latest shapes
are kept. All ranks see the same steps in the same order and so keep the same ones.

A rank that is lost, or silent for longer than the group's timeout, makes the call that needs it
raise.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

from handlers.pipeline.encoder_stage import EncoderStage
from handlers.pipeline.place import Place
from handlers.pipeline.ragged import Shape, Step
from handlers.pipeline.transport import SILENCE_S

#: Shapes whose buffers are kept.
NUM_SHAPES: Final = 64

_STOP, _BEAT, _STEP = range(3)
_HEADER: Final = 4


@dataclass(frozen=True, slots=True)
class _Pending:
    """Vectors that are on their way to rank 0."""

    step: Step
    vectors: Tensor
    arrival: dist.Work | None


class Pipe:
    """This rank's end of the pipeline. All methods are called by one thread."""

    def __init__(self, stage: EncoderStage, place: Place, silence_s: float = SILENCE_S) -> None:
        """Returns when every rank is ready; from then on one that is silent is taken for dead."""
        self._stage, self._place = stage, place
        self._last = place.num_ranks - 1
        self._schedules: OrderedDict[Shape, ScheduleGPipe] = OrderedDict()
        self._sent: list[tuple[dist.Work, Tensor]] = []
        self._group: dist.ProcessGroup | None = None
        self._stage_group: dist.ProcessGroup | None = None
        if place.num_ranks > 1:
            # Loading may take minutes, a step never does: so a group of its own for the work.
            dist.barrier()
            silence = timedelta(seconds=silence_s)
            self._group = dist.new_group(timeout=silence, backend="gloo")
            # torch sends a word of its own before a shape's first step. Messages of a group are
            # matched in the order they are asked for, so ours would take it, and need another.
            backend = "nccl" if stage.device.type == "cuda" else "gloo"
            self._stage_group = dist.new_group(timeout=silence, backend=backend)

    def run(self, steps: Sequence[Step], texts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Rank 0: the vector of each text, given as token ids; ``steps`` cover all of them."""
        with torch.no_grad():
            pending = [self._start(step, texts) for step in steps]
        found: list[list[float]] = [[] for _ in texts]
        for item in pending:
            if item.arrival is not None:
                item.arrival.wait()
            for text, vector in zip(item.step.texts, item.vectors.tolist(), strict=False):
                found[text] = vector
        self._settle()
        return found

    def beat(self) -> None:
        """Rank 0: make sure that every rank still answers."""
        self._announce(_BEAT)
        answers = [torch.zeros(1, dtype=torch.int64) for _ in range(self._last)]
        works = [dist.irecv(a, src=r + 1, group=self._group) for r, a in enumerate(answers)]
        for work in works:
            if work is not None:
                work.wait()
        self._settle()

    def stop(self) -> None:
        """Rank 0: end the other ranks' :meth:`serve`."""
        self._announce(_STOP)
        self._settle()

    def serve(self) -> None:
        """Other ranks: do what rank 0 announces until it says stop."""
        while True:
            header = torch.empty(_HEADER, dtype=torch.int64)
            dist.recv(header, src=0, group=self._group)
            kind, *numbers = header.tolist()
            if kind == _STOP:
                return
            if kind == _BEAT:
                dist.send(torch.zeros(1, dtype=torch.int64), dst=0, group=self._group)
            else:
                self._follow(Shape(*numbers))

    @torch.no_grad()
    def _follow(self, shape: Shape) -> None:
        lengths = torch.empty(shape.num_rows, dtype=torch.int64)
        dist.recv(lengths, src=0, group=self._group)
        vectors = self._step(shape, lengths)
        if vectors is not None:
            dist.send(vectors.cpu(), dst=0, group=self._group)

    def _start(self, step: Step, texts: Sequence[Sequence[int]]) -> _Pending:
        shape = step.shape
        # A row of padding has one token: an attention over none would not be a number.
        lengths = torch.ones(shape.num_rows, dtype=torch.int64)
        token_ids = torch.zeros(shape.num_rows, shape.length, dtype=torch.int64)
        for row, text in enumerate(step.texts):
            lengths[row] = len(texts[text])
            token_ids[row, : len(texts[text])] = torch.tensor(texts[text], dtype=torch.int64)
        self._announce(_STEP, shape, lengths)
        vectors = torch.empty(shape.num_rows, self._stage.num_outputs)
        arrival = None
        if self._last:
            # Asked for before the step is taken: the last rank can then never block on sending,
            # while this one would block on sending it the next step.
            arrival = dist.irecv(vectors, src=self._last, group=self._group)
        done = self._step(shape, lengths, token_ids.to(self._stage.device))
        return _Pending(step, vectors if done is None else done.cpu(), arrival)

    def _step(self, shape: Shape, lengths: Tensor, *first: Tensor) -> Tensor | None:
        """This rank's part of a step; the vectors on the last rank, None on the others."""
        device = self._stage.device
        mask = torch.arange(shape.length, device=device)[None] < lengths.to(device)[:, None]
        if self._group is None:
            # Alone there is nobody to overlap with, and torch's stages want a group.
            parts = zip(*(torch.split(x, shape.rows) for x in (*first, mask)), strict=True)
            return torch.cat([self._stage(ids, attention_mask=part) for ids, part in parts])
        vectors: Tensor | None = self._schedule(shape).step(*first, attention_mask=mask)
        return vectors

    def _schedule(self, shape: Shape) -> ScheduleGPipe:
        if shape in self._schedules:
            self._schedules.move_to_end(shape)
            return self._schedules[shape]
        stage = PipelineStage(
            self._stage,
            self._place.rank,
            self._place.num_ranks,
            self._stage.device,
            input_args=self._example(shape, is_input=True),
            output_args=self._example(shape, is_input=False),
            group=self._stage_group,
        )
        self._schedules[shape] = ScheduleGPipe(stage, shape.num_micro_batches)
        if len(self._schedules) > NUM_SHAPES:
            self._schedules.popitem(last=False)
        return self._schedules[shape]

    def _example(self, shape: Shape, *, is_input: bool) -> Tensor:
        """Shape and type of what crosses this rank's edge, without memory."""
        stage = self._stage
        if is_input and stage.is_first:
            return torch.empty(shape.rows, shape.length, dtype=torch.int64, device="meta")
        if not is_input and stage.is_last:
            return torch.empty(shape.rows, stage.num_outputs, device="meta")
        size = (shape.rows, shape.length, stage.hidden_size)
        return torch.empty(size, dtype=stage.dtype, device="meta")

    def _announce(
        self, kind: int, shape: Shape | None = None, lengths: Tensor | None = None
    ) -> None:
        numbers = [shape.num_micro_batches, shape.rows, shape.length] if shape else [0, 0, 0]
        header = torch.tensor([kind, *numbers], dtype=torch.int64)
        for rank in range(1, self._place.num_ranks):
            for message in [header] if lengths is None else [header, lengths]:
                work = dist.isend(message, dst=rank, group=self._group)
                if work is not None:
                    self._sent.append((work, message))

    def _settle(self) -> None:
        """Messages must stay in memory until they have left."""
        for work, _ in self._sent:
            work.wait()
        self._sent.clear()
