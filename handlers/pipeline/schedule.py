"""Decides which rows go through the pipeline next.

Sequences live in the *slots* of the cache; the slots are divided into *lanes*, and a lane has at
most one step in flight. With one lane per stage every stage has work: while one computes the
first lane, the next computes the second. New sequences go to the emptiest lane, because a step
costs nearly the same for one row as for several and the fullest lane sets the pace.

A step takes from each row the tokens the cache does not hold yet. More than one means *prefill*,
of a prompt or of what an earlier attempt generated; it is cut into chunks, and a lane alternates
between a chunk and a *decode* step of one token for its other rows, so that a long prompt slows
the others by a bounded step and never stops them.

It knows neither tensors nor processes, and not when a sequence is complete: the caller says so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Items
from dataclasses import dataclass, field

from handlers.pipeline.step import Operation, Row, Sampling, Step

#: Windows are rounded up to this many positions, so that the shapes of steps repeat.
WINDOW_STEP = 64


@dataclass(slots=True, eq=False)
class Sequence:
    """The tokens of one request, and how many of them the cache holds."""

    request_id: str
    #: Prompt, then generated tokens; the last one is never in the cache yet.
    token_ids: list[int]
    sampling: Sampling = field(default_factory=Sampling)
    num_cached: int = 0
    #: None: waiting for a slot, or removed.
    slot: int | None = None
    #: Counts up in the order of arrival.
    arrival: int = 0

    @property
    def num_missing(self) -> int:
        """Tokens that must go through the layers before the next one can be drawn."""
        return len(self.token_ids) - self.num_cached


@dataclass(frozen=True, slots=True)
class Issue:
    """A step to run, with the tokens of its rows, which only the first stage needs."""

    step: Step
    token_ids: tuple[tuple[int, ...], ...]


@dataclass(slots=True)
class _Lane:
    rows: list[Sequence | None]
    first_slot: int
    #: The rows of the step in flight, None for rows computed for nothing; None: no step.
    in_flight: list[tuple[Sequence | None, int]] | None = None
    prefilled_last: bool = False

    @property
    def num_taken(self) -> int:
        return sum(row is not None for row in self.rows)


class Schedule:
    """The sequences of one replica: waiting, in slots, and in flight."""

    def __init__(self, num_lanes: int, rows_per_lane: int, chunk: int, cache_length: int) -> None:
        self._chunk = chunk
        self._cache_length = cache_length
        self._lanes = [
            _Lane([None] * rows_per_lane, lane * rows_per_lane) for lane in range(num_lanes)
        ]
        self._waiting: deque[Sequence] = deque()
        self._in_flight: deque[_Lane] = deque()
        self._num_arrived = 0

    def __repr__(self) -> str:
        taken = "+".join(str(lane.num_taken) for lane in self._lanes)
        return f"<Schedule waiting={len(self._waiting)} rows={taken} steps={self.num_in_flight}>"

    @property
    def num_in_flight(self) -> int:
        """Steps that were issued and not yet applied."""
        return len(self._in_flight)

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait for a slot."""
        self._num_arrived += 1
        sequence.arrival = self._num_arrived
        self._waiting.append(sequence)
        self._fill()

    def remove(self, sequence: Sequence) -> None:
        """Give up a sequence, complete or not; its slot is free at once.

        A step of it may still be in flight. Stages work in order, so a successor's first step
        reaches each cache after it.
        """
        if sequence in self._waiting:
            self._waiting.remove(sequence)
        for lane in self._lanes:
            lane.rows = [None if row is sequence else row for row in lane.rows]
        sequence.slot = None
        self._fill()

    def issue(self) -> Issue | None:
        """The next step, or None when no idle lane has anything to compute."""
        for lane in self._lanes:
            if lane.in_flight is None and (rows := self._choose(lane)):
                lane.in_flight = [(sequence, count) for _, sequence, count in rows]
                self._in_flight.append(lane)
                return self._to_issue(rows)
        return None

    def apply(self, drawn: Items[int]) -> list[tuple[Sequence, int]]:
        """Take the result of the oldest step: one token for each of its rows.

        Returns:
            The sequences that grew and the token each grew by. Those in the middle of a prefill
            and those removed in the meantime are not among them.
        """
        lane = self._in_flight.popleft()
        rows, lane.in_flight = lane.in_flight or [], None
        grown = []
        for (sequence, count), token_id in zip(rows, drawn, strict=False):
            if sequence is None or sequence.slot is None:
                continue
            sequence.num_cached += count
            if sequence.num_missing == 0:
                sequence.token_ids.append(token_id)
                grown.append((sequence, token_id))
        return grown

    def _fill(self) -> None:
        while self._waiting:
            lane = min(self._lanes, key=lambda lane: lane.num_taken)
            if None not in lane.rows:
                return
            row = lane.rows.index(None)
            sequence = self._waiting.popleft()
            lane.rows[row], sequence.slot = sequence, lane.first_slot + row

    def _choose(self, lane: _Lane) -> list[tuple[int, Sequence | None, int]]:
        """The slots, sequences and token counts of a lane's next step."""
        present = [row for row in lane.rows if row is not None]
        ready = [row for row in present if row.num_missing == 1]
        behind = [row for row in present if row.num_missing > 1]
        lane.prefilled_last = bool(behind) and not (ready and lane.prefilled_last)
        if lane.prefilled_last:
            return self._prefill(behind)
        return _decode(ready)

    def _prefill(self, behind: list[Sequence]) -> list[tuple[int, Sequence | None, int]]:
        """As many rows as keep the step within one chunk of tokens, padding included."""
        chosen: list[tuple[int, Sequence | None, int]] = []
        width = 0
        # In order of arrival: were the shortest first, a long prompt could wait for ever.
        for sequence in sorted(behind, key=lambda sequence: sequence.arrival):
            count = min(sequence.num_missing, self._chunk)
            width = max(width, count)
            if chosen and (len(chosen) + 1) * width > self._chunk:
                break
            chosen.append((_slot(sequence), sequence, count))
        return chosen

    def _to_issue(self, rows: list[tuple[int, Sequence | None, int]]) -> Issue:
        width = max(count for _, _, count in rows)
        parts, tokens, end = [], [], 1
        for slot, sequence, count in rows:
            if sequence is None:
                parts.append(Row(slot, 0, 0))
                tokens.append((0,) * width)
                continue
            start = sequence.num_cached
            parts.append(Row(slot, start, count, sequence.sampling))
            row = sequence.token_ids[start : start + count]
            tokens.append(tuple(row) + (0,) * (width - count))
            end = max(end, start + count)
        window = min(-(-end // WINDOW_STEP) * WINDOW_STEP, self._cache_length)
        return Issue(Step(Operation.FORWARD, width, window, tuple(parts)), tuple(tokens))


def _decode(ready: list[Sequence]) -> list[tuple[int, Sequence | None, int]]:
    """One token for each ready row.

    Neighbouring slots are read from the cache in place, scattered ones are copied. So a few gaps
    are computed for nothing, and many are not.
    """
    slots = {_slot(sequence): sequence for sequence in ready}
    if not slots:
        return []
    span = range(min(slots), max(slots) + 1)
    wanted = span if len(span) <= 2 * len(slots) else sorted(slots)
    return [(slot, slots.get(slot), 1 if slot in slots else 0) for slot in wanted]


def _slot(sequence: Sequence) -> int:
    assert sequence.slot is not None
    return sequence.slot
