"""Moves steps along the ring of ranks: header and hidden states to the next, tokens to the first.

Sizes are known before anything is sent, so nothing is pickled and no length is negotiated. Sends
do not wait; their buffers are kept until they are through. A receive waits as long as the group's
timeout, then fails, as it does at once when the peer is gone: whoever calls treats either as the
end of the pipeline.

Loading takes longer than any step, so the ranks first meet in a group with the timeout for
loading, and a second one with the short timeout carries the steps.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from handlers.pipeline import step as steps
from handlers.pipeline.place import Place
from handlers.pipeline.step import Step

#: A rank that is silent this long is taken for dead.
SILENCE_S = 20.0


class Ring:
    """This rank's place in the ring, and the messages to and from its neighbours."""

    def __init__(self, place: Place, max_rows: int, group: dist.ProcessGroup | None) -> None:
        """``group``: None when there is one rank only."""
        self._group = group
        self._max_rows = max_rows
        self._rank, self._num_ranks = place.rank, place.num_ranks
        self._sent: deque[tuple[Any, Tensor]] = deque()

    def __repr__(self) -> str:
        return f"<Ring rank={self._rank}/{self._num_ranks} sending={len(self._sent)}>"

    def send_step(self, step: Step) -> None:
        """Send a step's header to the next rank."""
        words = steps.encode(step, self._max_rows)
        self._send(torch.tensor(words, dtype=torch.long), self._rank + 1)

    def receive_step(self) -> Step:
        """The next header from the rank before."""
        words = torch.empty(steps.header_size(self._max_rows), dtype=torch.long)
        return steps.decode(self._receive(words, self._rank - 1).tolist())

    def send_hidden(self, hidden: Tensor) -> None:
        """Send a step's hidden states to the next rank, after its header."""
        self._send(hidden.to("cpu").contiguous(), self._rank + 1)

    def receive_hidden(self, step: Step, hidden_size: int, dtype: torch.dtype) -> Tensor:
        """The hidden states that belong to a header."""
        shape = (len(step.rows), step.width, hidden_size)
        return self._receive(torch.empty(shape, dtype=dtype), self._rank - 1)

    def send_tokens(self, token_ids: Sequence[int]) -> None:
        """Answer a step, from the last rank to the first."""
        words = [*token_ids, *[-1] * (self._max_rows - len(token_ids))]
        self._send(torch.tensor(words, dtype=torch.long), 0)

    def receive_tokens(self) -> list[int]:
        """The answer to the oldest step that has none yet."""
        words = torch.empty(self._max_rows, dtype=torch.long)
        token_ids: list[int] = self._receive(words, self._num_ranks - 1).tolist()
        return token_ids

    def flush(self) -> None:
        """Wait until everything sent is through."""
        while self._sent:
            self._sent.popleft()[0].wait()

    def _send(self, tensor: Tensor, to: int) -> None:
        while self._sent and self._sent[0][0].is_completed():
            self._sent.popleft()
        self._sent.append((dist.isend(tensor, to, group=self._group), tensor))

    def _receive(self, tensor: Tensor, source: int) -> Tensor:
        dist.recv(tensor, source, group=self._group)
        return tensor


def meet(place: Place, loading_timeout_s: float) -> None:
    """Join the other ranks; they may differ by ``loading_timeout_s`` in getting here."""
    if place.num_ranks == 1:
        return
    if os.environ.get("LOCAL_WORLD_SIZE") == str(place.num_ranks):
        # All on this machine. Left alone, gloo takes the address of the machine's name, which
        # may not resolve, and opens ports to the network.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "gloo",
        rank=place.rank,
        world_size=place.num_ranks,
        timeout=timedelta(seconds=loading_timeout_s),
    )


def open_ring(place: Place, max_rows: int) -> Ring:
    """Wait until all ranks have loaded, then connect them for work."""
    if place.num_ranks == 1:
        return Ring(place, max_rows, None)
    dist.barrier()
    group = dist.new_group(timeout=timedelta(seconds=SILENCE_S), backend="gloo")
    return Ring(place, max_rows, group)
