"""A replica of the pipelined engine for tests, driven from the test's own process."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from handlers.engines.base import Engine, Place
from handlers.lifecycle import start_engine
from handlers.model_config import ModelConfig, Source
from handlers.pipeline.watch import STATUS_FILE
from handlers.wire import BadRequest, Chunk, Failure, Finish, GenerationRequest

#: Stages take seconds to import their libraries, and a minute on a machine with no idle core.
START_TIMEOUT_S, ANSWER_TIMEOUT_S = 120, 60.0


def model_config(folder: Path, num_stages: int = 1, **fields: Any) -> ModelConfig:
    """A generation model on the CPU in float32."""
    settings: dict[str, Any] = {
        "name": "test", "task": "generate", "source": Source("folder", str(folder)),
        "engine": "pipelined", "dtype": "float32", "num_stages": num_stages, "partition": None,
        "num_lanes": None, "max_batch": 8, "max_context": 128, "prefill_chunk": 16,
        "num_replicas": 1, "device_type": "cpu", "device_ids": None, "response_timeout_s": 60,
        "startup_timeout_s": START_TIMEOUT_S, "partition_by": "estimated",
        # It takes seconds of a processor to start, and most tests lose no stage.
        "has_standby": False,
    }  # fmt: skip
    return ModelConfig(**(settings | fields))


@dataclass
class Result:
    """What came back for one request."""

    chunks: list[Chunk] = field(default_factory=list)
    end: Finish | Failure | None = None

    @property
    def token_ids(self) -> list[int]:
        return self.tokens_of(0)

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks if chunk.index == 0)

    def tokens_of(self, index: int) -> list[int]:
        """The tokens of one of several answers."""
        return [t for chunk in self.chunks if chunk.index == index for t in chunk.token_ids]

    @property
    def reason(self) -> str:
        assert isinstance(self.end, Finish), self.end
        return self.end.reason


class Replica:
    """An engine and the requests it was sent."""

    def __init__(self, folder: Path, num_stages: int = 1, **fields: Any) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="replica"))
        self.config = model_config(folder, num_stages, **fields)
        self.engine: Engine = start_engine(self.config, Place(folder=self._folder))
        self._results: dict[str, Result] = {}
        self._num_answers = 0

    def submit(self, **request: Any) -> str:
        """Send a request; returns its id."""
        request_id = f"r{len(self._results) + 1}"
        self._results[request_id] = Result()
        try:
            self.engine.submit(request_id, GenerationRequest(**request))
            self._num_answers += request.get("n", 1)
        except BadRequest as error:
            failure = Failure(error.status, error.message, error.field)
            self._results[request_id].end = failure
        return request_id

    def cancel(self, request_id: str) -> None:
        self.engine.cancel(request_id)

    def wait_for_tokens(self, request_id: str, count: int) -> None:
        """Return as soon as a request has that many tokens."""
        self.wait_until(lambda: len(self._results[request_id].token_ids) >= count)

    def result(self, request_id: str) -> Result:
        """The complete answer of a request."""
        self.wait_until(lambda: self._results[request_id].end is not None)
        return self._results[request_id]

    def generate(self, **request: Any) -> Result:
        return self.result(self.submit(**request))

    def generate_all(self, requests: Sequence[Mapping[str, Any]]) -> list[Result]:
        """The answers to requests that run at the same time."""
        return [self.result(each) for each in [self.submit(**request) for request in requests]]

    @property
    def num_answers(self) -> int:
        """That were asked for, n of each request that was not refused."""
        return self._num_answers

    def stages(self) -> list[psutil.Process]:
        """The stages' processes, in their order, as the status names them; only living ones."""
        found = []
        for stage in self.status()["stages"]:
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(stage["pid"]))
        return [each for each in found if each.status() != psutil.STATUS_ZOMBIE]

    def status(self) -> dict[str, Any]:
        """What the engine shows of itself."""
        document: dict[str, Any] = json.loads((self._folder / STATUS_FILE).read_text())
        return document

    def close(self) -> None:
        self.engine.close()
        shutil.rmtree(self._folder)

    def wait_until(self, is_done: Callable[[], bool]) -> None:
        """Take answers until something is so.

        Raises:
            AssertionError: it was not within ``ANSWER_TIMEOUT_S``.
        """
        until = time.monotonic() + ANSWER_TIMEOUT_S
        while not is_done():
            assert time.monotonic() < until, f"nothing for {ANSWER_TIMEOUT_S} s: {self.engine!r}"
            self.engine.wait(0.05)
            for request_id, result in self._results.items():
                for answer in self.engine.take(request_id):
                    if isinstance(answer, Chunk):
                        result.chunks.append(answer)
                    else:
                        assert isinstance(answer, Finish | Failure)
                        result.end = answer
