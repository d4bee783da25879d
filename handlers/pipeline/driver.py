"""Rank 0's loop: issues steps, runs the first stage, takes tokens from the last.

One thread does it all. It first fills every idle lane, then waits for the oldest result: with as
many lanes as stages that keeps all stages at work. When there is nothing to do it sends a
heartbeat now and then, so that the other ranks' receives do not time out and a dead rank is
noticed while nobody waits for a token.

Requests come in from another thread through a queue and are looked at between steps.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch

from handlers.pipeline import transport
from handlers.pipeline.generation import Generation
from handlers.pipeline.sampling import draw
from handlers.pipeline.schedule import Issue, Schedule, Sequence
from handlers.pipeline.stage import Stage
from handlers.pipeline.step import Operation, Step
from handlers.pipeline.transport import Ring
from handlers.wire import Chunk, Finish

#: Heartbeats an idle pipeline makes in the time after which silence is death.
_BEATS: Final = 4

Emit = Callable[[str, list[Chunk | Finish]], None]


@dataclass(frozen=True, slots=True)
class Start:
    """Work on a request from now on."""

    sequence: Sequence
    generation: Generation


@dataclass(frozen=True, slots=True)
class Cancel:
    """Work on a request no more."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Close the pipeline."""


Command = Start | Cancel | Stop


class Driver:
    """The pipeline as rank 0 sees it."""

    def __init__(self, stage: Stage, ring: Ring, schedule: Schedule, emit: Emit) -> None:
        self._stage, self._ring, self._schedule, self._emit = stage, ring, schedule, emit
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._open: dict[str, Start] = {}
        #: What the only stage drew, when there is no other to ask; as long as steps are in flight.
        self._drawn: deque[list[int]] = deque()
        self._is_stopping = False

    def __repr__(self) -> str:
        return f"<Driver open={len(self._open)} {self._schedule!r}>"

    def tell(self, command: Command) -> None:
        """Leave a command for the loop; from any thread."""
        self._commands.put(command)

    def run(self) -> None:
        """Work until told to stop.

        Raises:
            RuntimeError: a rank is gone or silent; no request can go on.
        """
        while not self._is_stopping:
            self._obey()
            while (issue := self._schedule.issue()) is not None:
                self._forward(issue)
            if self._schedule.num_in_flight:
                self._advance(self._collect())
            elif not self._is_stopping and self._commands.empty():
                self._idle()
        self._close()

    def _obey(self) -> None:
        while not self._commands.empty():
            self._carry_out(self._commands.get())

    def _carry_out(self, command: Command) -> None:
        match command:
            case Start(sequence):
                self._open[sequence.request_id] = command
                self._schedule.add(sequence)
            case Cancel(request_id):
                if (start := self._open.pop(request_id, None)) is not None:
                    self._schedule.remove(start.sequence)
            case Stop():
                self._is_stopping = True

    def _forward(self, issue: Issue) -> None:
        token_ids = torch.tensor(issue.token_ids)
        if not self._stage.is_last:
            self._ring.send_step(issue.step)
            self._ring.send_hidden(self._stage.forward(issue.step, token_ids))
            return
        with torch.inference_mode():
            logits = self._stage.forward(issue.step, token_ids)
            self._drawn.append(draw(logits, issue.step.rows))

    def _collect(self) -> list[int]:
        return self._drawn.popleft() if self._stage.is_last else self._ring.receive_tokens()

    def _advance(self, drawn: list[int]) -> None:
        for sequence, token_id in self._schedule.apply(drawn):
            generation = self._open[sequence.request_id].generation
            news: list[Chunk | Finish] = [generation.add(token_id)]
            if generation.finish is not None:
                news.append(generation.finish)
                del self._open[sequence.request_id]
                self._schedule.remove(sequence)
            self._emit(sequence.request_id, news)

    def _idle(self) -> None:
        """Sleep until there is a command; keep the pipeline alive meanwhile."""
        try:
            self._carry_out(self._commands.get(timeout=transport.SILENCE_S / _BEATS))
        except queue.Empty:
            self._beat()

    def _beat(self) -> None:
        if not self._stage.is_last:
            self._ring.send_step(Step(Operation.BEAT))
            self._ring.receive_tokens()

    def _close(self) -> None:
        while self._schedule.num_in_flight:
            self._schedule.apply(self._collect())
        if not self._stage.is_last:
            self._ring.send_step(Step(Operation.STOP))
            self._ring.flush()
