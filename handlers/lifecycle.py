"""TorchServe's two calls, ``initialize`` and ``handle``, as calls on an engine.

Under continuous batching TorchServe calls ``handle`` again and again with the ids of all requests
that are open, the new ones with their bodies, and takes one output for each. Here every call
submits what is new, cancels what is gone (its client left), waits a moment if nothing is ready
and hands over what is. The engine works on meanwhile, so a call costs a hand-over and no
computing.

Three of TorchServe's rules shape the rest. A request's fate is told by a *stopping criterion* per
output: False, more follows; True, this was the last; None, an answer that was never a stream. The
last is needed when the first output already ends the request, for otherwise TorchServe never
sends the head of the response. A status can only be set together with the first output. And an
exception fails the requests of all clients at once, so none may leave ``handle``.

It knows neither torch nor a model.
"""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, Protocol

from handlers import model_config
from handlers.engines.base import Answer, Document, Engine, Place, Request, is_final
from handlers.model_config import ModelConfig
from handlers.pipeline import process
from handlers.wire import PARSERS, BadRequest, Failure, Frame, decode_object, encode_frame

logger = logging.getLogger(__name__)

#: Longest time a call waits when nothing is ready. A new request joins at the next call, so it
#: waits this long at worst; an idle engine costs one empty round trip in this time.
HAND_OVER_S: Final = 0.02

CONFIG_FILE: Final = "model-config.yaml"

#: TorchServe prints the time of every call through this logger and reads it back line by line. A
#: call is a hand-over here, so the number means nothing, and it cost a tenth of rank 0's time.
TORCHSERVE_METRICS_LOGGER: Final = "ts.metrics.caching_metric"


class Context(Protocol):
    """The part of TorchServe's context that is used here."""

    stopping_criteria: Mapping[int, Callable[[str], bool | None]] | None

    @property
    def system_properties(self) -> Mapping[str, Any]: ...

    def get_request_id(self, idx: int) -> str | None: ...

    def set_response_status(self, code: int, phrase: str, idx: int) -> None: ...

    def set_response_content_type(self, idx: int, value: str) -> None: ...


def start_engine(config: ModelConfig, place: Place) -> Engine:
    """The engine that the model's YAML names, started."""
    module = importlib.import_module(f"handlers.engines.{config.engine}")
    engine: Engine = module.Engine.start(config, place)
    return engine


class Lifecycle:
    """One worker's life: an engine, and the requests TorchServe has open with it."""

    def __init__(
        self, task: str, start: Callable[[ModelConfig, Place], Engine] = start_engine
    ) -> None:
        self._parse = PARSERS[task]
        self._task = task
        self._start = start
        self._engine: Engine | None = None
        #: Open requests, and whether the head of their response is sent.
        self._open: dict[str, bool] = {}
        #: Requests that were refused in this call.
        self._refused: dict[str, Failure] = {}

    def initialize(self, context: Context) -> None:
        """Load the model; in a rank other than 0 also start to work for rank 0.

        Raises:
            ValueError: the model's YAML is wrong or does not fit the model.
        """
        process.die_with_parent()
        logging.getLogger(TORCHSERVE_METRICS_LOGGER).setLevel(logging.WARNING)
        folder = Path(context.system_properties["model_dir"])
        config = model_config.load(folder / CONFIG_FILE)
        if config.task != self._task:
            raise ValueError(f"{config.name} is a model to {config.task}, not to {self._task}")
        self._engine = self._start(config, Place.from_environment(folder))

    def handle(self, data: Sequence[Mapping[str, Any]], context: Context) -> list[str]:
        """One hand-over: an output for each of the requests, in their order."""
        engine = self._engine
        if engine is None:
            raise RuntimeError("handle was called before initialize")
        request_ids = [str(context.get_request_id(index)) for index in range(len(data))]
        self._cancel_vanished(engine, request_ids)
        for request_id, row in zip(request_ids, data, strict=True):
            if request_id not in self._open:
                self._accept(engine, request_id, row)
        if not self._refused:
            engine.wait(HAND_OVER_S)
        answers = [self._take(engine, request_id) for request_id in request_ids]
        return self._hand_over(request_ids, answers, context)

    def _cancel_vanished(self, engine: Engine, request_ids: list[str]) -> None:
        for request_id in self._open.keys() - set(request_ids):
            engine.cancel(request_id)
            del self._open[request_id]
            logger.info("request_cancelled request_id=%s reason=client_left", request_id)

    def _accept(self, engine: Engine, request_id: str, row: Mapping[str, Any]) -> None:
        self._open[request_id] = False
        try:
            engine.submit(request_id, self._read(row))
        except BadRequest as error:
            failure = Failure(error.status, error.message, error.field)
            self._refused[request_id] = failure
        except Exception as error:
            logger.exception("request_failed request_id=%s", request_id)
            self._refused[request_id] = Failure(500, f"{type(error).__name__} in the worker")

    def _read(self, row: Mapping[str, Any]) -> Request:
        body = row.get("body", row.get("data"))
        if isinstance(body, dict):  # TorchServe has decoded what was sent as application/json
            return self._parse(body)
        if isinstance(body, str):
            body = body.encode("utf-8", "surrogatepass")
        elif not isinstance(body, bytes | bytearray | None):  # any other JSON value, decoded
            body = json.dumps(body).encode()
        return self._parse(decode_object(bytes(body or b"")))

    def _take(self, engine: Engine, request_id: str) -> list[Answer]:
        if (failure := self._refused.pop(request_id, None)) is not None:
            return [failure]
        return engine.take(request_id)

    def _hand_over(
        self, request_ids: list[str], answers: list[list[Answer]], context: Context
    ) -> list[str]:
        criteria: dict[int, Callable[[str], bool | None]] = {}
        for index, (request_id, news) in enumerate(zip(request_ids, answers, strict=True)):
            ended = bool(news) and is_final(news[-1])
            is_first = not self._open[request_id]
            if is_first:
                self._set_head(context, index, news)
            criteria[index] = _criterion(None if ended and is_first else ended)
            self._open[request_id] = True
            if ended:
                del self._open[request_id]
        context.stopping_criteria = criteria
        return ["".join(map(_encode, news)) for news in answers]

    def _set_head(self, context: Context, index: int, news: list[Answer]) -> None:
        """Status and content type go out with the first output, whatever that holds."""
        failure = news[-1] if news and isinstance(news[-1], Failure) else None
        is_stream = self._task == "generate" and failure is None
        kind = "application/x-ndjson" if is_stream else "application/json"
        context.set_response_content_type(index, kind)
        if failure is not None:
            status = HTTPStatus(failure.status)
            context.set_response_status(status.value, status.phrase, index)


def _criterion(verdict: bool | None) -> Callable[[str], bool | None]:
    return lambda _output: verdict


def _encode(answer: Answer) -> str:
    if isinstance(answer, Document):
        return json.dumps(answer.body, ensure_ascii=False, separators=(",", ":"))
    frame: Frame = answer
    return encode_frame(frame)
