"""Generates text with a whole model in one process, the way transformers itself runs it.

It is what the other engines are compared with, and it serves what cannot be cut into stages:
recurrent models, and any other that transformers has a causal language model for. It is right
rather than fast: open answers take turns, each reads one piece of its prompt or draws one token,
and nothing is batched.

An answer's tokens are read in the same pieces whenever it is computed: the prompt in chunks from
its beginning, then token by token, also those that an earlier attempt generated. So an answer that
is resumed goes on with the very logits it would have had, in any dtype.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from handlers.engines import base
from handlers.engines._text import TextModel, generation_of, sampling_of
from handlers.engines._whole import Reading, WholeModel
from handlers.engines.base import Answer, Place, Request, is_final
from handlers.model_config import ModelConfig
from handlers.outbox import Outbox
from handlers.pipeline import process
from handlers.pipeline.generation import Completion
from handlers.pipeline.memory import is_out_of_memory
from handlers.pipeline.sampling import Sampler, check
from handlers.pipeline.step import Draw, Open, Row, Sampling
from handlers.sources import resolve_source
from handlers.wire import Failure, Frame

logger = logging.getLogger(__name__)

#: Seconds that closing waits for the piece that is being read.
_CLOSE_WITHIN_S = 10.0


@dataclass(slots=True, eq=False)
class _Sequence:
    """One answer in the making."""

    index: int
    #: Its place in the sampler.
    slot: int
    #: Prompt, then generated tokens.
    token_ids: list[int]
    num_prompt: int
    sampling: Sampling
    #: None until its first turn.
    reading: Reading | None = None
    num_read: int = 0


@dataclass(slots=True, eq=False)
class _Open:
    """A request that has not ended."""

    completion: Completion
    sequences: list[_Sequence]


class Engine(base.Engine):
    """A model and the answers that take turns with it."""

    def __init__(self, text: TextModel, model: WholeModel, prefill_chunk: int) -> None:
        self._text, self._model, self._prefill_chunk = text, model, prefill_chunk
        limits = text.limits
        self._sampler = Sampler(
            limits.vocabulary_size, model.device, lambda: text.tokenizer, limits.eos_token_ids
        )
        self._outbox = Outbox()
        self._open: dict[str, _Open] = {}
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="transformers", daemon=True)

    def __repr__(self) -> str:
        return f"<transformers.Engine open={len(self._open)} {self._model!r}>"

    @classmethod
    def start(cls, config: ModelConfig, place: Place) -> Engine:
        if config.num_stages != 1:
            raise ValueError(
                f"{config.name}: engine transformers runs a model in one rank; set "
                f"torchrun.nproc-per-node to 1, not {config.num_stages}, or use engine pipelined"
            )
        model_dir = resolve_source(config)
        text = TextModel.read(config, model_dir)
        device = f"cuda:{place.local_rank}" if config.device_type == "gpu" else "cpu"
        model = WholeModel.load(model_dir, getattr(torch, config.dtype), device)
        engine = cls(text, model, config.prefill_chunk)
        logger.info("model_ready %r", model)
        engine._thread.start()
        return engine

    def submit(self, request_id: str, request: Request) -> None:
        opened = self._read(request)
        self._outbox.open(request_id)
        if opened.completion.finish is not None:
            self._outbox.put(request_id, [opened.completion.finish])
            return
        with self._changed:
            self._place(opened.sequences)
            self._open[request_id] = opened
            self._changed.notify()

    def cancel(self, request_id: str) -> None:
        with self._changed:
            self._open.pop(request_id, None)
        self._outbox.drop(request_id)

    def take(self, request_id: str) -> list[Answer]:
        return self._outbox.take(request_id)

    def wait(self, timeout_s: float) -> bool:
        return self._outbox.wait(timeout_s)

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._open.clear()
            self._changed.notify()
        self._thread.join(_CLOSE_WITHIN_S)

    def _read(self, request: Request) -> _Open:
        """The request as sequences that have no slot yet.

        Raises:
            BadRequest: the model cannot serve it.
        """
        wanted = generation_of(request)
        prompt = self._text.tokenize(wanted)
        completion = Completion(wanted, prompt, self._text.limits, self._text.decode)
        check(sampling_of(wanted, 0), self._text.tokenizer)
        sequences = []
        for index in range(wanted.n):
            if not completion.has_ended(index):
                token_ids = [*prompt, *wanted.generated_of(index)]
                how = sampling_of(wanted, index)
                sequences.append(_Sequence(index, -1, token_ids, len(prompt), how))
        return _Open(completion, sequences)

    def _place(self, sequences: list[_Sequence]) -> None:
        """Give sequences slots that no open one has."""
        taken = {each.slot for opened in self._open.values() for each in opened.sequences}
        free = (slot for slot in itertools.count() if slot not in taken)
        for sequence in sequences:
            sequence.slot = next(free)

    def _work(self) -> None:
        try:
            while self._await_work():
                for request_id, opened in self._turns():
                    self._turn(request_id, opened)
        except Exception as error:  # noqa: BLE001  # whatever it is, `end` logs it
            process.end(f"the model broke: {type(error).__name__}: {error}")

    def _await_work(self) -> bool:
        """Sleep while nothing is open; returns whether to go on."""
        with self._changed:
            self._changed.wait_for(lambda: self._open or self._is_closed)
            return not self._is_closed

    def _turns(self) -> Iterator[tuple[str, _Open]]:
        """Each request that is open, once, unless it is cancelled before its turn."""
        with self._changed:
            round_ = list(self._open.items())
        for request_id, opened in round_:
            if self._open.get(request_id) is opened:
                yield request_id, opened

    def _turn(self, request_id: str, opened: _Open) -> None:
        """One piece or one token for each of a request's answers."""
        for sequence in list(opened.sequences):
            try:
                draw = self._advance(sequence)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                draw = Draw(-1, fault=f"out of memory after {sequence.num_read} tokens: {error}")
            if draw is not None and not self._take(request_id, opened, sequence, draw):
                return

    def _advance(self, sequence: _Sequence) -> Draw | None:
        """Read the next piece; the token drawn after it, or None within the prompt."""
        if sequence.reading is None:
            sequence.reading = self._model.begin()
            prompt = tuple(sequence.token_ids[: sequence.num_prompt])
            generated = tuple(sequence.token_ids[sequence.num_prompt :])
            self._sampler.open(Open(sequence.slot, sequence.sampling, prompt, generated))
        piece = self._next_piece(sequence)
        logits = sequence.reading.read(piece)
        is_drawn = sequence.num_read + len(piece) == len(sequence.token_ids)
        row = Row(sequence.slot, sequence.num_read, len(piece), is_drawn)
        sequence.num_read += len(piece)
        return self._sampler.draw(logits[None], [row])[0] if is_drawn else None

    def _next_piece(self, sequence: _Sequence) -> list[int]:
        start, num_prompt = sequence.num_read, sequence.num_prompt
        if not self._model.remembers:
            return sequence.token_ids[start:]
        if start >= num_prompt:
            return sequence.token_ids[start : start + 1]
        most = self._prefill_chunk if self._model.takes_chunks else num_prompt
        return sequence.token_ids[start : min(start + most, num_prompt)]

    def _take(self, request_id: str, opened: _Open, sequence: _Sequence, draw: Draw) -> bool:
        """Add a drawn token to its answer; returns whether the request is still open."""
        if draw.fault:
            logger.error("request_isolated request_id=%s reason=%s", request_id, draw.fault)
            self._emit(request_id, opened, [Failure(500, draw.fault)])
            return False
        sequence.token_ids.append(draw.token_id)
        news = opened.completion.add(sequence.index, draw)
        if opened.completion.has_ended(sequence.index):
            opened.sequences.remove(sequence)
        self._emit(request_id, opened, news)
        return opened.completion.finish is None

    def _emit(self, request_id: str, opened: _Open, news: Sequence[Frame]) -> None:
        """Hand over news, unless the request was cancelled: its id may be another's by now."""
        with self._changed:
            if self._open.get(request_id) is opened:
                if news and is_final(news[-1]):
                    del self._open[request_id]
                self._outbox.put(request_id, news)
