"""Plait from HTTP to the runner, whose tasks end at once."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any

from benchmarks.queue import control
from benchmarks.queue.contenders.base import LATENCY, RATES, Facts
from benchmarks.queue.ledger import Ledger
from handlers.wire import Finish, Frame
from scheduler.torchserve.endpoint import Endpoint
from scheduler.torchserve.inference import Answer, Inference

FACTS = Facts(
    label="Plait, whole path",
    promise="as Plait, SQLite, before the HTTP answer",
    is_durable=True,
    together=f"{control.NUM_CONNECTIONS} HTTP connections",
    worker="a runner over gRPC",
    recovery="see the runner's row",
    packages=("plait",),
    parts=frozenset({RATES, LATENCY}),
    more_slots=(64,),
)
serve = control.serve


class Contender(control.ControlContender):
    def inference(self, endpoint: Endpoint) -> Inference:
        return _AtOnce(endpoint, self.ledger)


class _AtOnce(Inference):
    """Has no TorchServe behind it."""

    def __init__(self, endpoint: Endpoint, ledger: Ledger) -> None:
        super().__init__(endpoint)
        self._ledger = ledger

    async def stream(
        self,
        replica: str,  # noqa: ARG002  # the runner's call
        document: Mapping[str, Any],
        idle_timeout_s: float,  # noqa: ARG002  # the runner's call
    ) -> AsyncGenerator[Frame | Answer, None]:
        index = int(document["prompt"])
        self._ledger.begun(index)
        self._ledger.done(index)
        yield Finish("length", 1, 0)
