"""A replica of the pipelined engine for tests: one process a rank, started and killed by hand.

Rank 0 takes commands as lines of JSON and answers in lines of JSON; the test's own process never
joins a process group, so a broken pipeline cannot end it.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from handlers.model_config import ModelConfig, Source
from handlers.wire import Chunk, Failure, Finish, GenerationRequest, decode_frame

START_TIMEOUT_S, ANSWER_TIMEOUT_S = 90.0, 40.0


def model_config(folder: Path, num_stages: int = 1, **fields: Any) -> ModelConfig:
    """A generation model on the CPU in float32."""
    settings: dict[str, Any] = {
        "name": "test", "task": "generate", "source": Source("folder", str(folder)),
        "engine": "pipelined", "dtype": "float32", "num_stages": num_stages, "partition": None,
        "num_lanes": None, "max_batch": 8, "max_context": 128, "prefill_chunk": 16,
        "num_replicas": 1, "device_type": "cpu", "device_ids": None, "response_timeout_s": 60,
        "startup_timeout_s": 60,
    }  # fmt: skip
    return ModelConfig(**(settings | fields))


@dataclass
class Result:
    """What came back for one request."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    end: Finish | Failure | None = None
    #: Tokens and text, chunk for chunk as they came.
    chunks: list[Chunk] = field(default_factory=list)

    @property
    def reason(self) -> str:
        assert isinstance(self.end, Finish), self.end
        return self.end.reason


class Replica:
    """The ranks of one replica."""

    def __init__(self, folder: Path, num_stages: int, **fields: Any) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        settings = {"folder": str(folder), "num_stages": num_stages, **fields}
        self.ranks = [_start_rank(rank, num_stages, port, settings) for rank in range(num_stages)]
        self._results: dict[str, Result] = {}
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self.loaded: list[str] = json.loads(self._line(START_TIMEOUT_S))["loaded"]
        self._count = 0

    def submit(self, **request: Any) -> str:
        """Send a request; returns its id."""
        self._count += 1
        request_id = f"r{self._count}"
        self._results[request_id] = Result()
        document = GenerationRequest(**request).to_document()
        self._tell({"submit": request_id, "request": document})
        return request_id

    def cancel(self, request_id: str) -> None:
        self._tell({"cancel": request_id})

    def wait_for_tokens(self, request_id: str, count: int) -> None:
        """Return as soon as a request has that many tokens."""
        while len(self._results[request_id].token_ids) < count:
            self._accept(self._line(ANSWER_TIMEOUT_S))

    def result(self, request_id: str) -> Result:
        """The complete answer of a request."""
        while (result := self._results[request_id]).end is None:
            self._accept(self._line(ANSWER_TIMEOUT_S))
        return result

    def generate(self, **request: Any) -> Result:
        return self.result(self.submit(**request))

    def generate_all(self, requests: Sequence[Mapping[str, Any]]) -> list[Result]:
        """The answers to requests that run at the same time."""
        return [self.result(each) for each in [self.submit(**request) for request in requests]]

    def close(self) -> list[int]:
        """Stop as TorchServe's worker would when asked; returns the exit codes."""
        stdin = self.ranks[0].stdin
        assert stdin is not None
        stdin.close()
        return [rank.wait(30) for rank in self.ranks]

    def kill(self) -> None:
        """End whatever still runs."""
        for rank in self.ranks:
            rank.kill()
            rank.wait()
            for stream in (rank.stdin, rank.stdout):
                if stream is not None:
                    stream.close()

    def _tell(self, command: Mapping[str, Any]) -> None:
        stdin = self.ranks[0].stdin
        assert stdin is not None
        stdin.write(json.dumps(command) + "\n")
        stdin.flush()

    def _read(self) -> None:
        stdout = self.ranks[0].stdout
        assert stdout is not None
        for line in stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _line(self, timeout_s: float) -> str:
        line = self._lines.get(timeout=timeout_s)
        if line is None:
            raise AssertionError("rank 0 has ended")
        return line

    def _accept(self, line: str) -> None:
        answer = json.loads(line)
        frame = decode_frame(json.dumps(answer["frame"]))
        result = self._results[answer["id"]]
        if isinstance(frame, Chunk):
            result.chunks.append(frame)
            result.token_ids += frame.token_ids
            result.text += frame.text
        else:
            result.end = frame


def _start_rank(
    rank: int, num_stages: int, port: int, settings: Mapping[str, Any]
) -> subprocess.Popen[str]:
    variables = {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_stages),
        "LOCAL_WORLD_SIZE": str(num_stages), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
        "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, __file__, json.dumps(settings)],
        stdin=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
        stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
        text=True,
        env=os.environ | variables,
    )


def main() -> None:
    """One rank, in a process of its own."""
    from handlers.engines.base import Place
    from handlers.engines.pipelined import Engine
    from handlers.pipeline import process, surgery, transport

    process.die_with_parent()
    settings = json.loads(sys.argv[1])
    transport.SILENCE_S = settings.pop("silence_s", transport.SILENCE_S)
    loaded: list[str] = []
    build = surgery.build

    def watched_build(*args: Any) -> surgery.StageModel:
        parts = build(*args)
        loaded.extend(name for name, _ in parts.model.named_parameters())
        return parts

    surgery.build = watched_build  # type: ignore[assignment]
    config = model_config(Path(settings.pop("folder")), settings.pop("num_stages"), **settings)
    engine = Engine.start(config, Place.from_environment())
    if Place.from_environment().rank > 0:
        # As in a worker: the main thread has nothing to do, the pipeline's has.
        while engine.is_working:
            time.sleep(0.05)
        return
    _print({"loaded": loaded})
    _serve(engine)


def _read_commands(into: queue.Queue[str]) -> None:
    for line in sys.stdin:
        into.put(line)
    into.put("")


def _serve(engine: Any) -> None:
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read_commands, args=(lines,), daemon=True).start()
    open_: set[str] = set()
    while True:
        while not lines.empty():
            line = lines.get()
            if not line:
                engine.close()
                return
            _obey(engine, json.loads(line), open_)
        engine.wait(0.005)
        for request_id in list(open_):
            for answer in engine.take(request_id):
                _answer(request_id, answer, open_)


def _obey(engine: Any, command: Mapping[str, Any], open_: set[str]) -> None:
    from handlers.wire import BadRequest, parse_generation

    if "cancel" in command:
        engine.cancel(command["cancel"])
        open_.discard(command["cancel"])
        return
    request_id = command["submit"]
    try:
        engine.submit(request_id, parse_generation(command["request"]))
        open_.add(request_id)
    except BadRequest as error:
        _answer(request_id, Failure(error.status, error.message, error.field), open_)


def _answer(request_id: str, answer: Any, open_: set[str]) -> None:
    from handlers.wire import encode_frame

    _print({"id": request_id, "frame": json.loads(encode_frame(answer))})
    if not isinstance(answer, Chunk):
        open_.discard(request_id)


def _print(document: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
