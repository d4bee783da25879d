"""Plait's runner with a TorchServe beside it, both killed together; the control plane stays."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from benchmarks.queue import control
from benchmarks.queue.contenders.base import KILL, Facts
from benchmarks.queue.ledger import Ledger
from handlers.wire import Finish, Frame
from scheduler.torchserve.endpoint import Endpoint
from scheduler.torchserve.inference import Answer, Inference

FACTS = Facts(
    label="Plait, runner and TorchServe's double",
    promise="as Plait, SQLite, with every token",
    is_durable=True,
    together=f"{control.NUM_CONNECTIONS} HTTP connections",
    worker="a runner over gRPC",
    recovery="the new runner's hello, or the lease's end after 10 s; from the last token on",
    packages=("plait",),
    parts=frozenset({KILL}),
)
serve = control.serve


class Contender(control.ControlContender):
    def inference(self, endpoint: Endpoint) -> Inference:
        return _Noted(endpoint, self.ledger)


class _Noted(Inference):
    """Writes down when an answer begins and when it is whole."""

    def __init__(self, endpoint: Endpoint, ledger: Ledger) -> None:
        super().__init__(endpoint)
        self._ledger = ledger

    async def stream(
        self, replica: str, document: Mapping[str, Any], idle_timeout_s: float
    ) -> AsyncGenerator[Frame | Answer, None]:
        index = int(document["prompt"])
        self._ledger.begun(index)
        async with aclosing(super().stream(replica, document, idle_timeout_s)) as frames:
            async for frame in frames:
                if isinstance(frame, Finish):
                    self._ledger.done(index)
                yield frame
