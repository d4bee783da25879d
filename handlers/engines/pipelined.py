"""Generates text with a decoder cut into stages, each in a process of its own.

Rank 0 is the driver: it reads requests, schedules, and turns tokens into text. It starts one
process for each stage and brings back those that are lost, while the requests stay open. The
other ranks, which TorchServe starts so that a worker owns its devices, have nothing to do.

Requests are checked and tokenized in the caller's thread: what is wrong with one is told at once
and never reaches the pipeline. When the stages cannot be brought up again the process ends; the
worker is started anew from outside, and the requests go on from their journals.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from handlers.engines import base
from handlers.engines._placeholder import Placeholder
from handlers.engines._text import TextModel, generation_of, sampling_of
from handlers.engines.base import Answer, Place, Request
from handlers.model_config import ModelConfig
from handlers.outbox import Outbox
from handlers.pipeline import process
from handlers.pipeline.bring_up import make_driver
from handlers.pipeline.driver import Cancel, Driver, Start, Stop
from handlers.pipeline.generation import Completion
from handlers.pipeline.orders import Unfit
from handlers.pipeline.sampling import check
from handlers.pipeline.schedule import Sequence
from handlers.sources import resolve_source
from handlers.wire import GenerationRequest

logger = logging.getLogger(__name__)

#: Seconds that closing waits for the stages to stop.
_CLOSE_WITHIN_S = 20.0


class Engine(base.Engine):
    """A pipeline of decoder stages, as rank 0 drives it."""

    def __init__(self, config: ModelConfig, place: Place, model_dir: Path) -> None:
        self._model = TextModel.read(config, model_dir)
        self._outbox = Outbox()
        self._ready = threading.Event()
        self._refusal: Exception | None = None
        self._is_closed = False
        self._driver: Driver = make_driver(
            config, place, model_dir, self._model.limits, self._outbox.put, self._ready.set
        )
        self._thread = threading.Thread(target=self._work, name="pipeline", daemon=True)

    def __repr__(self) -> str:
        return f"<pipelined.Engine {self._outbox!r} {self._driver!r}>"

    @classmethod
    def start(cls, config: ModelConfig, place: Place) -> base.Engine:
        """Start the stages and wait until they stand connected.

        Raises:
            ValueError: the model cannot be run as it is configured.
        """
        if place.rank > 0:
            return Placeholder()
        engine = cls(config, place, resolve_source(config))
        engine._thread.start()
        is_ready = engine._ready.wait(config.startup_timeout_s)
        if engine._refusal is not None:
            raise ValueError(str(engine._refusal)) from engine._refusal
        if not is_ready:
            raise TimeoutError(
                f"{config.name}: the stages were not ready within {config.startup_timeout_s} s "
                f"(startupTimeout): {engine._driver!r}"
            )
        return engine

    def submit(self, request_id: str, request: Request) -> None:
        wanted = generation_of(request)
        completion, sequences = self._read(request_id, wanted)
        ticket = self._outbox.open(request_id)
        if completion.finish is not None:
            self._outbox.put(request_id, [completion.finish])
            return
        self._driver.tell(Start(request_id, ticket, sequences, completion))

    def cancel(self, request_id: str) -> None:
        self._outbox.drop(request_id)
        self._driver.tell(Cancel(request_id))

    def take(self, request_id: str) -> list[Answer]:
        return self._outbox.take(request_id)

    def wait(self, timeout_s: float) -> bool:
        return self._outbox.wait(timeout_s)

    def close(self) -> None:
        self._is_closed = True
        self._driver.tell(Stop())
        self._thread.join(_CLOSE_WITHIN_S)

    def _read(
        self, request_id: str, request: GenerationRequest
    ) -> tuple[Completion, tuple[Sequence, ...]]:
        """What the driver needs to begin.

        Raises:
            BadRequest: the model cannot serve it.
        """
        prompt = self._model.tokenize(request)
        completion = Completion(request, prompt, self._model.limits, self._model.decode)
        sequences = []
        for index in range(request.n):
            how = sampling_of(request, index)
            if index == 0:
                check(how, self._model.tokenizer)
            if not completion.has_ended(index):
                token_ids = [*prompt, *request.generated_of(index)]
                sequences.append(Sequence(request_id, index, token_ids, len(prompt), how))
        return completion, tuple(sequences)

    def _work(self) -> None:
        try:
            self._driver.run()
        except Unfit as error:
            self._refusal = error
            if self._ready.is_set():
                process.end(f"the model cannot be loaded again: {error}")
            self._ready.set()
        except Exception as error:  # noqa: BLE001  # whatever it is, `end` logs it
            process.end(f"the pipeline broke: {type(error).__name__}: {error}")
