"""A light model server: TorchServe's double as a process that writes down what it computes.

Every token is a function of the request and its position, so the answer of an undisturbed run is
known before anything runs. ``<state>/computed.jsonl`` gets a line for every token computed and
every replica taken away; the lines outlive a kill. SIGUSR1 does what a worker's death does.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from handlers.wire import Chunk
from scheduler.settings import load
from scheduler.testing import output
from scheduler.testing.torchserve import FakeTorchServe

DIARY: Final = "computed.jsonl"
#: Seconds a token takes, from the environment: it is no setting of Plait's.
STEP_VARIABLE: Final = "CHAOS_STEP_S"
#: Seconds a replica takes to be ready.
LOAD_S: Final = 0.5


class ModelServer(FakeTorchServe):
    """One node's."""

    def __init__(self, state: Path, store: Path, step_s: float) -> None:
        super().__init__(state, store, load_s=LOAD_S, step_s=step_s)
        state.mkdir(parents=True, exist_ok=True)
        # Unbuffered: a line is the kernel's once it is written, whatever becomes of this process.
        self._diary = (state / DIARY).open("ab", buffering=0)

    def chunk(self, document: Mapping[str, Any], position: int, index: int) -> Chunk:
        token = output.token(document, index, position)
        self._note(seed=document["seed"], position=position)
        return Chunk((token,), output.text((token,)), index)

    def unregistering(self, name: str, num_running: int) -> None:
        self._note(replica=name, num_running=num_running)

    def _note(self, **fields: Any) -> None:
        self._diary.write(json.dumps({"at": time.monotonic(), **fields}).encode() + b"\n")


async def _serve() -> None:
    settings = load()
    step_s = float(os.environ[STEP_VARIABLE])
    server = ModelServer(settings.state, settings.model_store.absolute(), step_s)
    await server.start()
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    loop.add_signal_handler(signal.SIGUSR1, _kill_workers, server)
    await stopped.wait()
    await server.stop()


def _kill_workers(server: FakeTorchServe) -> None:
    for name in list(server.models):
        server.kill_worker(name)


if __name__ == "__main__":
    asyncio.run(_serve())
