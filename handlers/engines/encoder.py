"""Embeds or classifies texts with an encoder that is split over a replica's ranks.

Rank 0 has a thread that works in rounds. A round takes texts of all open requests, an equal share
of each, so that a small request need not wait for a large one; cuts them into steps of about equal
length; and sends them through the pipeline as micro-batches. Texts longer than ``max_context``
tokens are cut there, as the model's own library does.

When a rank fails there is nothing to be saved: the process ends, torchrun stops the others and
TorchServe starts the group anew. An idle pipeline is checked with a heartbeat.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch
import torch.distributed as dist
from transformers import AutoTokenizer

from handlers.engines import base
from handlers.engines.base import Answer, Document, Place, Request
from handlers.model_config import ModelConfig
from handlers.outbox import Outbox
from handlers.pipeline import encoder_check, encoder_stage, encoder_surgery, process
from handlers.pipeline.encoder_answers import Answers, Classes, Vectors, check_size
from handlers.pipeline.encoder_stage import EncoderStage
from handlers.pipeline.gpipe import Pipe
from handlers.pipeline.labels import Labels
from handlers.pipeline.partition import Costs, Cut, Device, plan
from handlers.pipeline.ragged import MAX_ROWS, plan_steps
from handlers.pipeline.transport import meet
from handlers.sources import resolve_source
from handlers.wire import Failure

logger = logging.getLogger(__name__)

#: Steps a round may fill; more would make texts that arrive meanwhile wait longer.
STEPS_PER_ROUND: Final = 2
#: Seconds between two heartbeats while there is nothing to do.
HEARTBEAT_S: Final = 5.0
#: Seconds `close` waits for the round that runs.
CLOSE_WITHIN_S: Final = 10.0

#: Token ids of texts, cut to the model's length.
Tokenize = Callable[[Sequence[str]], list[list[int]]]


@dataclass(slots=True)
class _Open:
    """A request and how far it got."""

    texts: tuple[str, ...]
    #: What came out of the last rank for each text so far.
    outputs: list[list[float]] = field(default_factory=list)
    num_tokens: int = 0


class Engine(base.Engine):
    """One rank's engine; see the contract in ``base``."""

    def __init__(
        self, pipe: Pipe, tokenize: Tokenize, answers: Answers, num_lanes: int, longest: int
    ) -> None:
        self._pipe, self._tokenize, self._answers = pipe, tokenize, answers
        self._num_lanes, self._longest = num_lanes, longest
        self._outbox = Outbox()
        self._requests: dict[str, _Open] = {}
        self._work = threading.Condition()
        self._is_closed = False
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"<encoder.Engine open={len(self._requests)} lanes={self._num_lanes}>"

    @classmethod
    def start(cls, config: ModelConfig, place: Place) -> Engine:
        folder = resolve_source(config)
        longest = _longest(config, folder)
        cuts = _cuts(config, folder, place)
        if place.rank == 0:
            encoder_check.check(folder, cuts, config.task)
        meet(place, config.startup_timeout_s)
        dtype = getattr(torch, config.dtype)
        stage = EncoderStage(folder, cuts[place.rank], dtype, _device(config, place), config.task)
        tokenize = _tokenizer(folder, longest) if place.rank == 0 else _no_texts
        num_lanes = 1 if place.num_ranks == 1 else config.num_lanes or place.num_ranks
        answers = _answers(config, folder)
        engine = cls(Pipe(stage, place), tokenize, answers, num_lanes, longest)
        engine._run_thread(engine._loop if place.rank == 0 else engine._serve)
        return engine

    def submit(self, request_id: str, request: Request) -> None:
        texts = self._answers.texts_of(request)
        check_size(texts, self._answers)
        self._outbox.open(request_id)
        with self._work:
            self._requests[request_id] = _Open(texts)
            self._work.notify()

    def cancel(self, request_id: str) -> None:
        with self._work:
            self._requests.pop(request_id, None)
        self._outbox.drop(request_id)

    def take(self, request_id: str) -> list[Answer]:
        return self._outbox.take(request_id)

    def wait(self, timeout_s: float) -> bool:
        return self._outbox.wait(timeout_s)

    def close(self) -> None:
        with self._work:
            self._is_closed = True
            self._work.notify()
        if self._thread is not None:
            self._thread.join(CLOSE_WITHIN_S)

    def _run_thread(self, work: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                work()
            except Exception as error:
                # Whatever it was, the ranks no longer agree on what comes next.
                logger.exception("pipeline_lost")
                process.end(f"the encoder's pipeline failed: {error}")

        self._thread = threading.Thread(target=guarded, name="encoder", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        self._pipe.serve()
        self._leave()

    def _loop(self) -> None:
        while not self._is_closed:
            if share := self._next_share():
                self._round(share)
            else:
                self._pipe.beat()
        self._pipe.stop()
        self._leave()

    def _leave(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()

    def _next_share(self) -> list[tuple[str, _Open, tuple[str, ...]]]:
        """What the next round works on; nothing when it is time for a heartbeat."""
        with self._work:
            self._work.wait_for(lambda: self._requests or self._is_closed, HEARTBEAT_S)
            if self._is_closed or not self._requests:
                return []
            room = STEPS_PER_ROUND * self._num_lanes * MAX_ROWS
            each = max(1, room // len(self._requests))
            return [
                (request_id, opened, _rest(opened, each))
                for request_id, opened in list(self._requests.items())[:room]
            ]

    def _round(self, share: list[tuple[str, _Open, tuple[str, ...]]]) -> None:
        parts: list[tuple[str, _Open, list[list[int]]]] = []
        for request_id, opened, texts in share:
            try:
                parts.append((request_id, opened, self._tokenize(texts)))
            except Exception as error:
                # One request's texts; the others and the pipeline are sound.
                logger.exception("request_failed request_id=%s", request_id)
                failure = Failure(500, f"{type(error).__name__} while reading the texts")
                self._finish(request_id, opened, failure)
        token_ids = [text for _, _, texts in parts for text in texts]
        steps = plan_steps([len(text) for text in token_ids], self._num_lanes, self._longest)
        outputs = iter(self._pipe.run(steps, token_ids))
        for request_id, opened, tokenized in parts:
            opened.outputs += [next(outputs) for _ in tokenized]
            opened.num_tokens += sum(map(len, tokenized))
            if len(opened.outputs) == len(opened.texts):
                body = self._answers.document(opened.outputs, opened.num_tokens)
                self._finish(request_id, opened, Document(body))

    def _finish(self, request_id: str, opened: _Open, answer: Answer) -> None:
        with self._work:
            # It may have been cancelled meanwhile, and its id given out again.
            if self._requests.get(request_id) is opened:
                del self._requests[request_id]
                self._outbox.put(request_id, [answer])


def _rest(opened: _Open, most: int) -> tuple[str, ...]:
    done = len(opened.outputs)
    return opened.texts[done : done + most]


def _no_texts(texts: Sequence[str]) -> list[list[int]]:
    raise AssertionError(f"only rank 0 is given texts; got {len(texts)}")


def _longest(config: ModelConfig, folder: Path) -> int:
    positions = encoder_stage.max_positions(folder, config.task)
    if config.max_context > positions:
        raise ValueError(
            f"plait.max_context is {config.max_context}; {config.name} takes {positions} tokens"
        )
    return config.max_context


def _cuts(config: ModelConfig, folder: Path, place: Place) -> Sequence[Cut]:
    """Each rank's layers, by their weights; the embeddings weigh on the first rank."""
    layers, before, behind = encoder_surgery.count_weights(folder, config.task)
    device = Device(Costs.of_weights(layers, before, behind))
    return plan([device] * place.num_ranks, explicit=config.partition).cuts


def _answers(config: ModelConfig, folder: Path) -> Answers:
    model = encoder_stage.read_config(folder)
    if config.task == "classify":
        return Classes(Labels.of(model.id2label, model.problem_type))
    return Vectors(model.hidden_size)


def _device(config: ModelConfig, place: Place) -> torch.device:
    if config.device_type == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError(f"{config.name} wants deviceType: gpu; torch finds none here")
    device = torch.device("cuda", place.local_rank)
    torch.cuda.set_device(device)
    return device


def _tokenizer(folder: Path, longest: int) -> Tokenize:
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    settings = folder / "sentence_bert_config.json"
    # Some models were trained on lower case although their tokenizer keeps the case.
    is_lowered = settings.is_file() and bool(
        json.loads(settings.read_text(encoding="utf-8")).get("do_lower_case")
    )

    def tokenize(texts: Sequence[str]) -> list[list[int]]:
        given = [text.lower() if is_lowered else text for text in texts]
        found = tokenizer(given, truncation=True, max_length=longest, padding=False)
        token_ids: list[list[int]] = found["input_ids"]
        return token_ids

    return tokenize
