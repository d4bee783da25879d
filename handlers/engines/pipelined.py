"""Generates text with a decoder cut into stages, one for each rank.

In every rank it loads that rank's stage; then rank 0 runs the driver and the others serve it, in
a thread, so that ``start`` returns. Requests are checked and tokenized in the caller's thread:
what is wrong with one is told at once and never reaches the pipeline.

A broken pipeline ends the process. The group is started anew from outside, and the requests go on
from their journals; nothing in here tries to mend it.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from collections.abc import Sequence as TokenIds
from pathlib import Path

import torch
from transformers import AutoTokenizer, GenerationConfig

from handlers.engines import base
from handlers.engines.base import Answer, Place, Request
from handlers.model_config import ModelConfig
from handlers.outbox import Outbox
from handlers.pipeline import partition, process, ranks, surgery, transport
from handlers.pipeline.driver import Cancel, Driver, Start, Stop
from handlers.pipeline.generation import Generation, Limits
from handlers.pipeline.schedule import Schedule, Sequence
from handlers.pipeline.stage import Stage
from handlers.pipeline.step import Sampling
from handlers.sources import resolve_source
from handlers.wire import BadRequest, GenerationRequest

logger = logging.getLogger(__name__)

#: Seconds that closing waits for the step in flight.
_CLOSE_WITHIN_S = 10.0


class Engine(base.Engine):
    """A pipeline of decoder stages."""

    def __init__(self, model_dir: Path, limits: Limits) -> None:
        self._limits = limits
        self._tokenizer = AutoTokenizer.from_pretrained(model_dir)
        self._outbox = Outbox()
        self._driver: Driver | None = None
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"<pipelined.Engine {self._outbox!r} {self._driver!r}>"

    @classmethod
    def start(cls, config: ModelConfig, place: Place) -> Engine:
        """Load this rank's stage, wait for the others, begin to work."""
        model_dir = resolve_source(config)
        limits = _limits(config, model_dir)
        transport.meet(place, config.startup_timeout_s)
        num_lanes = config.num_lanes or place.num_ranks
        rows_per_lane = -(-config.max_batch // num_lanes)
        stage = _load(config, place, model_dir, num_lanes * rows_per_lane)
        engine = cls(model_dir, limits)
        # Last of all: from here on a rank that is silent is taken for dead.
        ring = transport.open_ring(place, rows_per_lane)
        logger.info("stage_ready rank=%d %r", place.rank, stage)
        if place.rank == 0:
            schedule = Schedule(num_lanes, rows_per_lane, config.prefill_chunk, config.max_context)
            engine._driver = Driver(stage, ring, schedule, engine._outbox.put)
            engine._work(engine._driver.run)
        else:
            engine._work(lambda: ranks.serve(stage, ring))
        return engine

    def submit(self, request_id: str, request: Request) -> None:
        if not isinstance(request, GenerationRequest):
            raise BadRequest("", "this model generates text; it makes no embeddings")
        prompt = request.prompt_token_ids or self._tokenize(request.prompt or "")
        generation = Generation(request, prompt, self._limits, self._decode)
        self._outbox.open(request_id)
        if generation.finish is not None:
            self._outbox.put(request_id, [generation.finish])
            return
        how = Sampling(request.temperature, request.top_k, request.top_p, request.seed or 0)
        sequence = Sequence(request_id, [*prompt, *request.generated], how)
        self._loop.tell(Start(sequence, generation))

    def cancel(self, request_id: str) -> None:
        self._outbox.drop(request_id)
        self._loop.tell(Cancel(request_id))

    def take(self, request_id: str) -> list[Answer]:
        return self._outbox.take(request_id)

    def wait(self, timeout_s: float) -> bool:
        return self._outbox.wait(timeout_s)

    def close(self) -> None:
        if self._driver is not None:
            self._driver.tell(Stop())
        if self._thread is not None:
            self._thread.join(_CLOSE_WITHIN_S)

    @property
    def is_working(self) -> bool:
        """Whether this rank's loop still runs."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def _loop(self) -> Driver:
        if self._driver is None:
            raise RuntimeError("only rank 0 takes requests")
        return self._driver

    def _work(self, loop: Callable[[], None]) -> None:
        def run() -> None:
            try:
                loop()
            except Exception as error:  # noqa: BLE001  # whatever it is, `end` logs it
                process.end(f"the pipeline broke: {type(error).__name__}: {error}")

        self._thread = threading.Thread(target=run, name="pipeline", daemon=True)
        self._thread.start()

    def _tokenize(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text)["input_ids"])

    def _decode(self, token_ids: TokenIds[int]) -> str:
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))


def _load(config: ModelConfig, place: Place, model_dir: Path, num_slots: int) -> Stage:
    weights = partition.Weights.estimate(surgery.text_config(model_dir))
    cuts = partition.plan(weights, place.num_ranks, config.partition)
    device = f"cuda:{place.local_rank}" if config.device_type == "gpu" else "cpu"
    parts = surgery.build(model_dir, cuts[place.rank], getattr(torch, config.dtype), device)
    return Stage(parts, num_slots, config.max_context)


def _limits(config: ModelConfig, model_dir: Path) -> Limits:
    text = surgery.text_config(model_dir)
    longest = getattr(text, "max_position_embeddings", None) or config.max_context
    if config.max_context > longest:
        raise ValueError(
            f"{config.name}: max_context is {config.max_context}; the model has {longest} positions"
        )
    return Limits(config.max_context, text.vocab_size, _eos_token_ids(model_dir))


def _eos_token_ids(model_dir: Path) -> frozenset[int]:
    """All tokens that end an answer: what the files name for generation, else for the model."""
    if (model_dir / "generation_config.json").is_file():
        given = GenerationConfig.from_pretrained(model_dir).eos_token_id
    else:
        given = json.loads((model_dir / "config.json").read_text()).get("eos_token_id")
    if given is None:
        return frozenset()
    return frozenset(given if isinstance(given, list) else [given])
