"""Measures on the spot what a decoder's parts cost on this process's device.

Timed are a few copies of each kind of layer, the head on a part of the vocabulary, and what a
stage does whatever its layers; each at a few numbers of rows and in one prefill chunk. The parts'
own times are differences of these.

The pieces are timed in turns: so a disturbance hits all of them and not the balance between them,
and each finds its weights pushed out of the processor's caches by the others, as a real stage
does. Neighbours on the machine only ever make a step slower, so of all turns the fastest counts.
What is slow has fewer turns. All stages of a replica measure at the same time: they will also
work at the same time.

It reads no weights of the model, and takes one to three seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from handlers.pipeline.memory import free_bytes, memory_name
from handlers.pipeline.part_costs import Costs, PartProfile, Profile, kv_bytes_per_block
from handlers.pipeline.skeleton import Kind, Skeleton, random_tensor
from handlers.pipeline.stage import Stage
from handlers.pipeline.step import BLOCK, Row, Step
from handlers.pipeline.surgery import StageModel

#: Numbers of rows that decode steps are timed at.
ROWS: Final = (1, 4, 16)
#: Enough tokens for the time of one to tell that of a longer chunk's.
PREFILL_CHUNK: Final = 32
#: Seconds of turns. Building the pieces comes on top, and the first turn if it is slower.
BUDGET_S: Final = 0.8
#: Bytes of weights of a piece: as little of it stays in a cache as of a stage, also where the last
#: level has hundreds of megabytes. A third of this made a head look half as slow as it is.
PIECE_BYTES: Final = 128 << 20
MAX_COPIES: Final = 8
_MAX_TURNS: Final = 30
#: Positions that a timed step attends to.
_WINDOW: Final = 4 * BLOCK

Prepare = Callable[[StageModel], Any]
Draw = Callable[[Tensor], Any]


def measure(
    model_dir: Path,
    dtype: torch.dtype,
    device: torch.device,
    *,
    prepare: Prepare | None = None,
    draw: Draw | None = None,
    rows: Sequence[int] = ROWS,
    prefill_chunk: int = PREFILL_CHUNK,
    budget_s: float = BUDGET_S,
) -> Profile:
    """What the decoder of ``model_dir`` costs here.

    Args:
        prepare: what is done to a stage's model after it was built, such as packing its weights.
        draw: what is done to the logits [rows, vocabulary]; None: the largest is looked for.

    Raises:
        ValueError: the model is no decoder with a list of layers.
        RuntimeError: there is no memory for one layer.
    """
    began = time.perf_counter()
    free = free_bytes(device)
    skeleton = Skeleton(model_dir, dtype)
    bench = _Bench(skeleton, device, tuple(sorted(rows)), prefill_chunk, prepare)
    fixed = bench.add_layers(skeleton.kinds[0], 0)
    kinds = [bench.add_layers(kind, _num_copies(kind)) for kind in skeleton.kinds]
    head, embedding = bench.add_head(draw or _largest), bench.add_embedding()
    bench.take_turns(budget_s)
    return Profile(
        str(device),
        memory_name(device),
        free,
        str(dtype).removeprefix("torch."),
        bench.rows,
        prefill_chunk,
        tuple(piece.profile(fixed) for piece in kinds),
        skeleton.kind_of_layer,
        embedding.profile(),
        head.profile(fixed),
        fixed.profile(),
        skeleton.tied_bytes,
        time.perf_counter() - began,
    )


def _num_copies(kind: Kind) -> int:
    return max(1, min(MAX_COPIES, kind.count, -(-PIECE_BYTES // kind.weight_bytes)))


def count(model_dir: Path, dtype: torch.dtype) -> Costs:
    """An estimate by exact sizes: every weight of a decoder counted, none of them read."""
    skeleton = Skeleton(model_dir, dtype)
    sizes = [skeleton.kinds[kind].weight_bytes for kind in skeleton.kind_of_layer]
    costs = Costs.of_weights(sizes, skeleton.embedding_bytes, skeleton.head_bytes)
    kv_bytes = kv_bytes_per_block(skeleton.text_config, dtype.itemsize)
    layers = tuple(replace(part, kv_bytes=kv_bytes) for part in costs.layers)
    return replace(costs, layers=layers, tied_bytes=skeleton.tied_bytes)


def _largest(logits: Tensor) -> Tensor:
    return logits.argmax(-1)


@dataclass(slots=True)
class _Piece:
    """Something to be timed."""

    #: Decode steps at each number of rows, then the prefill chunk if there is one.
    runs: list[Callable[[], Any]]
    #: Parts that one run goes through; less than one is a part of the part.
    num_parts: float
    weight_bytes: int
    #: Of one part.
    kv_bytes: int = 0
    #: Seconds of the fastest turn of each run.
    best: list[float] = field(default_factory=list)

    def profile(self, fixed: _Piece | None = None) -> PartProfile:
        """What one part takes; ``fixed`` is timed with it and not its own."""
        without = fixed.best if fixed is not None else [0.0] * len(self.best)
        # However small a part beside the noise, it is not nothing.
        seconds = [
            max(whole - rest, 0.02 * whole) / self.num_parts
            for whole, rest in zip(self.best, without, strict=False)
        ]
        num_prefills = 1 if len(seconds) == len(without) else 0
        decode = seconds[: len(seconds) - num_prefills]
        # Fewer rows never take longer than more do.
        rising = tuple(min(decode[index:]) for index in range(len(decode)))
        return PartProfile(rising, seconds[-1], self.weight_bytes, self.kv_bytes)


@dataclass(slots=True)
class _Bench:
    """Pieces of one skeleton on one device."""

    skeleton: Skeleton
    device: torch.device
    rows: tuple[int, ...]
    prefill_chunk: int
    prepare: Prepare | None
    pieces: list[_Piece] = field(default_factory=list)

    def add_layers(self, kind: Kind, num_copies: int) -> _Piece:
        """Copies of a layer; none is what a stage does whatever its layers."""
        stage = self._stage(self.skeleton.layers(kind, num_copies, self.device))
        steps = [*map(self._decode, self.rows), self._prefill()]
        runs = [self._run(stage, step) for step in steps]
        num_parts = max(1, num_copies)
        return self._add(
            _Piece(runs, num_parts, kind.weight_bytes, stage.kv_bytes_per_block // num_parts)
        )

    def add_head(self, draw: Draw) -> _Piece:
        """The head on a part of the vocabulary; in prefill it runs for one token as in decode."""
        row_bytes = self.skeleton.hidden_size * self.skeleton.dtype.itemsize
        num_tokens = min(self.skeleton.vocabulary_size, -(-PIECE_BYTES // row_bytes))
        stage = self._stage(self.skeleton.head(num_tokens, self.device))
        runs = [self._run(stage, self._decode(num_rows), draw) for num_rows in self.rows]
        share = num_tokens / self.skeleton.vocabulary_size
        return self._add(_Piece(runs, share, self.skeleton.head_bytes))

    def add_embedding(self) -> _Piece:
        num_tokens = min(self.skeleton.vocabulary_size, BLOCK**2)
        table = random_tensor(
            num_tokens, self.skeleton.hidden_size, dtype=self.skeleton.dtype, device=self.device
        )

        def lookup(count: int) -> Callable[[], Tensor]:
            token_ids = torch.arange(count, device=self.device)[:, None] * 61 % num_tokens
            return lambda: torch.nn.functional.embedding(token_ids, table)

        runs = [lookup(count) for count in (*self.rows, self.prefill_chunk)]
        return self._add(_Piece(runs, 1, self.skeleton.embedding_bytes))

    def take_turns(self, budget_s: float) -> None:
        """Time every run of every piece again and again, each within its share of the budget."""
        # The first runs of all pieces, then the second ones: a piece is not met again at once.
        order = [
            (piece, index)
            for index in range(len(self.rows) + 1)
            for piece in self.pieces
            if index < len(piece.runs)
        ]
        times: list[list[float]] = [[] for _ in order]
        share = budget_s / len(order)
        with torch.inference_mode():
            for turn in range(_MAX_TURNS):
                for (piece, index), taken in zip(order, times, strict=True):
                    # The first run takes memory and makes what later ones reuse, so it is
                    # repeated unless it was so long that this hardly matters.
                    if sum(taken) < share * (2 if turn == 1 else 1):
                        taken.append(self._time(piece.runs[index]))
        for piece in self.pieces:
            piece.best = [min(t) for (of, _), t in zip(order, times, strict=True) if of is piece]

    def _time(self, run: Callable[[], Any]) -> float:
        began = time.perf_counter()
        run()
        if self.device.type != "cpu":
            getattr(torch, self.device.type).synchronize(self.device)
        return time.perf_counter() - began

    def _add(self, piece: _Piece) -> _Piece:
        self.pieces.append(piece)
        return piece

    def _stage(self, parts: StageModel) -> Stage:
        if self.prepare is not None:
            self.prepare(parts)
        stage = Stage(parts, max(self.rows), max(_WINDOW, _blocks(self.prefill_chunk)))
        stage.allocate(stage.num_home_blocks)
        return stage

    def _decode(self, num_rows: int) -> Step:
        last = _WINDOW - 1
        rows = tuple(Row(slot, last, 1, is_drawn=True) for slot in range(num_rows))
        return Step(0, 1, _WINDOW, rows)

    def _prefill(self) -> Step:
        width = self.prefill_chunk
        return Step(0, width, _blocks(width), (Row(0, 0, width),))

    def _run(self, stage: Stage, step: Step, draw: Draw | None = None) -> Callable[[], Any]:
        shape = len(step.rows), step.width, self.skeleton.hidden_size
        hidden = random_tensor(*shape, dtype=self.skeleton.dtype, device=self.device)
        if draw is None:
            return lambda: stage.forward(step, hidden)
        return lambda: draw(stage.forward(step, hidden))


def _blocks(length: int) -> int:
    """``length``, rounded up to blocks."""
    return -(-length // BLOCK) * BLOCK
