"""Carries hidden states from each stage to the next.

The stages form a process group anew after every fault: an *epoch*. Both ends know a tensor's
shape from the step, so nothing is pickled and no size is negotiated. Receives are posted as soon
as a step is known, before the stage has computed the one before; sends do not wait, and their
buffers are kept until they are through. So moving and computing overlap.

Between processors the backend is gloo, between devices their own (nccl, which is rccl on AMD;
xccl), and hidden states never pass through the host.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from dataclasses import dataclass
from datetime import timedelta
from queue import SimpleQueue
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # upstream

from handlers.pipeline.place import Place
from handlers.pipeline.step import Step

#: A neighbour that says nothing for this long while a tensor is due is gone. The driver, which
#: sees more, is meant to act before.
SILENCE_S: Final = 30.0
#: Seconds a hop between stages takes longer; for tests and benchmarks of slow links.
LINK_DELAY_VARIABLE: Final = "PLAIT_TEST_LINK_DELAY_S"
_BACKENDS: Final = {"cpu": "gloo", "cuda": "nccl", "xpu": "xccl"}


@dataclass(frozen=True, slots=True)
class Due:
    """Hidden states that are on their way."""

    work: Any
    hidden: Tensor

    def wait(self) -> Tensor:
        """The hidden states [rows, width, hidden].

        Raises:
            RuntimeError: the sender is gone.
        """
        self.work.wait()
        return self.hidden


class Line:
    """A stage's place among the stages of one epoch."""

    def __init__(self, stage: int, num_stages: int, device: torch.device) -> None:
        self._stage, self._num_stages = stage, num_stages
        self._device = device
        self._sent: deque[tuple[Any, Tensor]] = deque()
        delay_s = float(os.environ.get(LINK_DELAY_VARIABLE, "0"))
        self._slow = _SlowLink(self._send, delay_s) if delay_s else None

    def __repr__(self) -> str:
        return f"<Line stage={self._stage}/{self._num_stages} sending={len(self._sent)}>"

    def join(self, host: str, port: int, epoch: int) -> None:
        """Form the group of an epoch with all other stages; an earlier one is left.

        Raises:
            RuntimeError: not everybody came in time.
        """
        self.leave()
        if self._num_stages == 1:
            return
        _keep_to_loopback(host)
        within = timedelta(seconds=SILENCE_S)
        store = TCPStore(host, port, is_master=False, timeout=within)
        dist.init_process_group(
            _BACKENDS[self._device.type],
            store=PrefixStore(f"epoch{epoch}", store),
            rank=self._stage,
            world_size=self._num_stages,
            timeout=within,
            device_id=None if self._device.type == "cpu" else self._device,
        )

    def abort(self) -> None:
        """Break off what another thread waits for in the group: it raises there, or ends."""
        if dist.is_initialized() and dist.group.WORLD is not None:
            dist.group.WORLD.abort()

    def leave(self) -> None:
        """Drop the group and whatever is on its way in it."""
        self._sent.clear()
        if dist.is_initialized():
            dist.destroy_process_group()

    def expect(self, step: Step, hidden_size: int, dtype: torch.dtype) -> Due:
        """Begin to receive a step's hidden states."""
        shape = (len(step.rows), step.width, hidden_size)
        hidden = torch.empty(shape, dtype=dtype, device=self._device)
        return Due(dist.irecv(hidden, self._stage - 1), hidden)

    def send(self, hidden: Tensor) -> None:
        """Begin to send a step's hidden states [rows, width, hidden] to the next stage."""
        hidden = hidden.contiguous()
        if self._slow is None:
            self._send(hidden)
        else:
            self._slow.send(hidden)

    def _send(self, hidden: Tensor) -> None:
        while self._sent and self._sent[0][0].is_completed():
            self._sent.popleft()
        self._sent.append((dist.isend(hidden, self._stage + 1), hidden))


class _SlowLink:
    """Sends everything later by the same time, in order; a link's latency, not its bandwidth."""

    def __init__(self, send: Any, delay_s: float) -> None:
        self._waiting: SimpleQueue[tuple[float, Tensor]] = SimpleQueue()
        self._forward, self._delay_s = send, delay_s
        threading.Thread(target=self._run, name="slow-link", daemon=True).start()

    def send(self, hidden: Tensor) -> None:
        self._waiting.put((time.monotonic() + self._delay_s, hidden))

    def _run(self) -> None:
        while True:
            at, hidden = self._waiting.get()
            time.sleep(max(0.0, at - time.monotonic()))
            self._forward(hidden)


def meet(place: Place, loading_timeout_s: float) -> None:
    """Join the ranks torchrun started; they may differ by ``loading_timeout_s`` in getting here."""
    if place.num_ranks == 1:
        return
    if os.environ.get("LOCAL_WORLD_SIZE") == str(place.num_ranks):
        _keep_to_loopback("127.0.0.1")
    dist.init_process_group(
        "gloo",
        rank=place.rank,
        world_size=place.num_ranks,
        timeout=timedelta(seconds=loading_timeout_s),
    )


def _keep_to_loopback(host: str) -> None:
    """Left alone, gloo takes the address of the machine's name and opens ports to the network."""
    if host.startswith("127."):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
