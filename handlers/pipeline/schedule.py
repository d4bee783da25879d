"""Decides which rows go through the pipeline next.

Whoever drives it repeats: send every step that :meth:`Schedule.issue` gives, until it gives None;
then wait for a result and :meth:`~Schedule.apply` it. Stages must run the steps in the order they
were issued.

It knows neither tensors nor processes nor the time, and not when a sequence is complete: the
caller says so.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace

from handlers.pipeline import batching
from handlers.pipeline.batching import Share
from handlers.pipeline.lanes import LaneModel
from handlers.pipeline.sequence import Sequence
from handlers.pipeline.step import BLOCK, Draw, Step

__all__ = ["Schedule", "Sequence", "Shape"]


@dataclass(frozen=True, slots=True)
class Shape:
    """What a pipeline has room for."""

    num_stages: int
    #: Slots, so sequences that run at once.
    max_rows: int
    #: Most tokens of a prefill step.
    prefill_chunk: int
    #: Most tokens of a sequence.
    max_context: int
    #: Blocks of keys and values in every stage, the scratch block not counted.
    num_blocks: int
    is_exact: bool = False
    has_prefix_cache: bool = True
    #: A prefill step takes at most this many times a decode cycle, while anyone decodes.
    gap_factor: float = 1.5

    @property
    def blocks_per_slot(self) -> int:
        """Blocks that hold a whole context."""
        return -(-self.max_context // BLOCK)

    @property
    def is_home(self) -> bool:
        """Whether every slot owns blocks for a whole context, so that steps name none."""
        return self.num_blocks >= self.max_rows * self.blocks_per_slot


@dataclass(frozen=True, slots=True)
class _Flight:
    """A step on its way."""

    #: With the life the sequence had when the step was issued, and the row's end.
    rows: tuple[tuple[Sequence, int, int] | None, ...]
    is_decode: bool
    num_lanes: int


class Schedule:
    """The sequences of one replica: waiting, in slots, and in flight."""

    def __init__(self, shape: Shape, lanes: LaneModel) -> None:
        if not shape.is_home:
            raise ValueError("only the home layout, for now")
        self._shape, self._lanes = shape, lanes
        self._waiting: list[Sequence] = []
        self._running: list[Sequence | None] = [None] * shape.max_rows
        self._flights: dict[int, _Flight] = {}
        self._num_arrived = self._num_issued = 0
        self._is_parked = False

    def __repr__(self) -> str:
        running = sum(each is not None for each in self._running)
        return (
            f"<Schedule waiting={len(self._waiting)} running={running} steps={self.num_in_flight}>"
        )

    @property
    def num_in_flight(self) -> int:
        """Steps that were issued and not yet applied."""
        return len(self._flights)

    @property
    def sequences(self) -> list[Sequence]:
        """All that were added and not removed, in order of arrival."""
        running = [each for each in self._running if each is not None]
        return sorted([*self._waiting, *running], key=_arrival)

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait for a slot."""
        self._num_arrived += 1
        sequence.arrival = self._num_arrived
        self._waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Give up a sequence, complete or not; its slot is free at once.

        A step of it may still be in flight. Stages work in order, so a successor's first step
        reaches each cache after it.
        """
        if sequence.slot is not None:
            self._release(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)

    def issue(self) -> Step | None:
        """The next step to send, or None when there is nothing to do before a result comes."""
        if self._is_parked:
            return None
        self._admit()
        decoding = [each for each in self._running if each is not None and each.num_missing <= 1]
        behind = [each for each in self._running if each is not None and each.num_missing > 1]
        if (step := self._decode(decoding)) is not None:
            return step
        return self._prefill(behind, decoding)

    def apply(self, number: int, draws: Items[Draw | None]) -> list[tuple[Sequence, Draw]]:
        """Take the result of a step: a draw for each of its rows, None where none was asked for.

        Results come in the order the steps were issued. That of a step from before a reset is
        not taken.

        Returns:
            The sequences that grew and the draw each grew by. One whose draw has a fault is among
            them and did not grow; it does nothing more until it is removed or all is reset.
        """
        flight = self._flights.pop(number, None)
        grown = []
        for row, draw in zip(() if flight is None else flight.rows, draws, strict=False):
            if row is None or draw is None:
                continue
            sequence, life, end = row
            if sequence.life != life or sequence.slot is None or end != len(sequence.token_ids):
                continue
            if not draw.fault:
                sequence.token_ids.append(draw.token_id)
            grown.append((sequence, draw))
        return grown

    def observe(self, number: int, stage: int, seconds: float) -> None:
        """A stage took so long for a step; before the step's result is applied."""
        flight = self._flights.get(number)
        if flight is not None and flight.is_decode:
            self._lanes.observe(flight.num_lanes, len(flight.rows), stage, seconds)

    def reset(self) -> None:
        """Every stage lost its cache: all sequences wait again, in order of arrival."""
        self._flights.clear()
        for sequence in self._running:
            if sequence is not None:
                self._preempt(sequence)
        self._is_parked = False

    def park(self) -> None:
        """Issue nothing more until the next reset; steps in flight still count."""
        self._is_parked = True

    def _admit(self) -> None:
        while self._waiting and None in self._running:
            sequence = self._waiting.pop(0)
            sequence.slot = self._running.index(None)
            self._running[sequence.slot] = sequence

    def _release(self, sequence: Sequence) -> None:
        assert sequence.slot is not None
        self._running[sequence.slot] = None
        sequence.slot, sequence.num_cached, sequence.is_open = None, 0, False
        sequence.life += 1

    def _preempt(self, sequence: Sequence) -> None:
        self._release(sequence)
        insort(self._waiting, sequence, key=_arrival)

    def _decode(self, decoding: list[Sequence]) -> Step | None:
        ready = [each for each in decoding if each.num_missing == 1]
        lanes = self._lanes.choose(len(decoding))
        if not ready or sum(each.is_decode for each in self._flights.values()) >= lanes:
            return None
        chosen = batching.run_of(ready, -(-len(decoding) // lanes))
        shares = batching.decode(chosen, is_in_place=self._shape.is_home)
        return self._send(shares, lanes, is_decode=True)

    def _prefill(self, behind: list[Sequence], decoding: list[Sequence]) -> Step | None:
        lanes = self._lanes.choose(len(decoding)) if decoding else 0
        most = max(1, self._shape.num_stages - lanes)
        in_flight = sum(not each.is_decode for each in self._flights.values())
        is_too_soon = any(each.num_prefills_passed >= most for each in decoding)
        if not behind or in_flight >= most or is_too_soon:
            return None
        shares = batching.prefill(behind, self._shape.prefill_chunk)
        for sequence in decoding:
            sequence.num_prefills_passed += 1
        return self._send(shares, lanes, is_decode=False)

    def _send(self, shares: list[Share], num_lanes: int, *, is_decode: bool) -> Step:
        self._num_issued += 1
        step = batching.write(self._num_issued, shares)
        rows = [each.sequence for each in shares if each.sequence is not None]
        opens = tuple(sequence.opening() for sequence in rows if not sequence.is_open)
        self._flights[step.number] = _Flight(tuple(map(_row, shares)), is_decode, num_lanes)
        for each in shares:
            if each.sequence is not None:
                each.sequence.num_cached += each.num_tokens
                each.sequence.is_open = True
                each.sequence.last_issue = self._num_issued
                each.sequence.num_prefills_passed = 0
        return replace(step, opens=opens)


def _row(share: Share) -> tuple[Sequence, int, int] | None:
    return None if share.sequence is None else (share.sequence, share.sequence.life, share.end)


def _arrival(sequence: Sequence) -> int:
    return sequence.arrival
