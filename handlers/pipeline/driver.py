"""Rank 0's loop: issues steps, takes what the last stage drew, and outlives the stages.

One thread does it all. It fills the pipeline with as many steps as the schedule allows, then
waits for whatever comes first: a stage that is done, a stage that is lost, a command. Open
requests live here, with all their tokens, so a lost stage costs them the time to bring it back
and to compute their caches again; neither TorchServe nor a client notices.

It computes nothing and touches no device.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from handlers.pipeline.crew import Crew
from handlers.pipeline.faults import MAX_FAULTS, Docket
from handlers.pipeline.generation import Completion
from handlers.pipeline.orders import Broken, Done, Event, Ready
from handlers.pipeline.schedule import Schedule, Sequence
from handlers.pipeline.step import Draw
from handlers.pipeline.watch import Watch
from handlers.wire import Chunk, Failure, Finish

logger = logging.getLogger(__name__)

#: Seconds the loop sleeps at most; commands and results wake it.
_SLEEP_S: Final = 0.25

#: Takes a request's id, what is new of it, and its ticket.
Emit = Callable[[str, Iterable[Chunk | Finish | Failure], int], None]


@dataclass(frozen=True, slots=True)
class Start:
    """Work on a request from now on: one sequence for each of its answers that has not ended."""

    request_id: str
    #: Goes with everything that is emitted for it: a later request may have the same id.
    ticket: int
    sequences: tuple[Sequence, ...]
    completion: Completion


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

    def __init__(
        self,
        crew: Crew,
        make_schedule: Callable[[int], Schedule],
        emit: Emit,
        watch: Watch,
    ) -> None:
        """``make_schedule``: a schedule for stages with so many blocks.

        ``watch`` is told what happens and may ask for another cut.
        """
        self._crew, self._make_schedule, self._emit = crew, make_schedule, emit
        self._watch = watch
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._open: dict[str, Start] = {}
        self._docket = Docket()
        self._schedule: Schedule | None = None
        self._num_blocks = 0
        #: When each step in flight was sent.
        self._sent_at: dict[int, float] = {}
        self._is_ready = self._is_stopping = False

    def __repr__(self) -> str:
        return f"<Driver open={len(self._open)} {self._crew!r} {self._schedule!r}>"

    def tell(self, command: Command) -> None:
        """Leave a command for the loop; from any thread."""
        self._commands.put(command)
        self._crew.ring()

    def run(self) -> None:
        """Bring the stages up and work until told to stop.

        Raises:
            CrewLost: the stages cannot be brought up again; no request can go on.
            Unfit: the model cannot be run as it is configured.
        """
        try:
            self._crew.start()
            while not self._is_stopping:
                for event in self._crew.wait(_SLEEP_S):
                    self._take(event)
                self._obey()
                self._issue()
                self._tend()
        finally:
            self._crew.close()

    def _obey(self) -> None:
        while self._schedule is not None and not self._commands.empty():
            match command := self._commands.get():
                case Start():
                    self._open[command.request_id] = command
                    for sequence in command.sequences:
                        self._schedule.add(sequence)
                case Cancel(request_id):
                    self._forget(request_id)
                case Stop():
                    self._is_stopping = True

    def _issue(self) -> None:
        if self._schedule is None:
            return
        while self._is_ready and (step := self._schedule.issue()) is not None:
            self._sent_at[step.number] = time.monotonic()
            self._watch.issued(step, self._sent_at[step.number])
            self._crew.send(step)

    def _take(self, event: Event) -> None:
        match event:
            case Done():
                self._done(event)
            case Ready():
                self._be_ready(event)
            case Broken():
                self._break(event)

    def _done(self, done: Done) -> None:
        schedule = self._schedule
        if schedule is None or not self._is_ready:
            return
        now = time.monotonic()
        schedule.observe(done.number, done.stage, done.seconds)
        self._watch.done(done, now)
        if done.draws is None:
            return
        draws = [None if draw is None else _draw(draw) for draw in done.draws]
        took_s = now - self._sent_at.pop(done.number)
        for sequence, draw in schedule.apply(done.number, draws, took_s):
            self._advance(sequence, draw)

    def _advance(self, sequence: Sequence, draw: Draw) -> None:
        """A sequence got a token, or there was none to be had."""
        if draw.fault:
            self._fault(sequence, draw.fault)
            return
        self._docket.grew(sequence)
        start = self._open[sequence.request_id]
        completion = start.completion
        news = completion.add(sequence.index, draw)
        if completion.has_ended(sequence.index):
            self._remove(sequence)
        if completion.finish is not None:
            del self._open[sequence.request_id]
        self._emit(sequence.request_id, news, start.ticket)

    def _be_ready(self, ready: Ready) -> None:
        waiting: Iterable[Sequence] = ()
        if self._schedule is None or ready.num_blocks != self._num_blocks:
            waiting = self._schedule.sequences if self._schedule is not None else ()
            self._schedule = self._make_schedule(ready.num_blocks)
            self._num_blocks = ready.num_blocks
        for sequence in waiting:
            self._schedule.add(sequence)
        self._is_ready = True
        self._watch.ready(self._crew, self._schedule)

    def _break(self, broken: Broken) -> None:
        """Every cache is lost: all go on from their tokens, except who is guilty of it."""
        self._is_ready = False
        schedule = self._schedule
        assert schedule is not None
        in_flight = schedule.in_flight
        self._watch.broken(broken.reason, len(in_flight))
        self._reset(schedule)
        for sequence in self._docket.blame(in_flight):
            self._fail(sequence.request_id, broken.reason)

    def _fault(self, sequence: Sequence, reason: str) -> None:
        if self._docket.blame_one(sequence):
            self._fail(sequence.request_id, reason)
        else:
            assert self._schedule is not None
            logger.warning(
                "sequence_recomputed request_id=%s reason=%s", sequence.request_id, reason
            )
            self._schedule.remove(sequence)
            self._schedule.add(sequence)

    def _fail(self, request_id: str, reason: str) -> None:
        logger.error("request_isolated request_id=%s reason=%s", request_id, reason)
        ticket = self._open[request_id].ticket
        self._forget(request_id)
        message = f"the engine failed {MAX_FAULTS} times at this request: {reason}"
        self._emit(request_id, [Failure(500, message)], ticket)

    def _forget(self, request_id: str) -> None:
        if (start := self._open.pop(request_id, None)) is not None:
            for sequence in start.sequences:
                self._remove(sequence)

    def _remove(self, sequence: Sequence) -> None:
        assert self._schedule is not None
        self._docket.forget(sequence)
        self._schedule.remove(sequence)

    def _tend(self) -> None:
        """Look after what is not urgent: the status, and whether another cut would do better."""
        now = time.monotonic()
        if self._schedule is None or not self._is_ready:
            return
        cuts = self._watch.tend(now, self._crew, self._schedule)
        if cuts is not None:
            self._is_ready = False
            self._reset(self._schedule)
            self._schedule.relearn()
            self._crew.recut(cuts)

    def _reset(self, schedule: Schedule) -> None:
        """Every step in flight and every cache is lost."""
        self._sent_at.clear()
        schedule.reset()


def _draw(document: dict[str, object]) -> Draw:
    top = tuple((token, likelihood) for token, likelihood in document["top"])  # type: ignore[attr-defined]  # a stage's own
    return Draw(**{**document, "top": top})  # type: ignore[arg-type]  # asdict of a Draw
