"""Decides which rows go through the pipeline next.

There is no fixed batch: each step takes sequences that are not in flight. A *decode* step takes
one token of several, so many that as many *lanes* (decode steps in flight) as pay are equally
full. A *prefill* step takes a chunk of a prompt, or of what an earlier attempt generated. While
anyone decodes, nobody waits for more than one prefill step between two of its tokens (more when
stages would idle otherwise), and :mod:`handlers.pipeline.pace` keeps that step short. While
nobody does, the chunks of one prompt follow each other through the stages.

In *exact* mode steps keep to fixed shapes, so that company changes no bit: a decode step has all
slots of a group, a prefill step one row of a fixed chunk, and what was generated before goes
through decode steps again, as it did the first time.

Whoever drives it repeats: send every step that :meth:`Schedule.issue` gives until it gives None;
then wait for a result, tell :meth:`~Schedule.observe` what the stages took, and
:meth:`~Schedule.apply` it. Stages run the steps in the order of issue; nothing else is asked of
them. It knows neither tensors nor processes nor the time, nor when an answer is complete: the
caller says so with :meth:`~Schedule.remove`.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, field, replace

from handlers.pipeline import batching
from handlers.pipeline.batching import Share
from handlers.pipeline.lanes import LaneModel
from handlers.pipeline.pace import Pace
from handlers.pipeline.sequence import Sequence
from handlers.pipeline.shape import Shape
from handlers.pipeline.slots import Slots
from handlers.pipeline.step import Draw, Open, Step

__all__ = ["Counts", "Schedule", "Sequence", "Shape"]


@dataclass(frozen=True, slots=True)
class Counts:
    """What a status says of a schedule."""

    num_waiting: int
    num_running: int
    num_in_flight: int
    #: As chosen last; 0 while nobody has decoded.
    num_lanes: int
    num_blocks_used: int
    #: Not used by anyone, but holding what may be found again.
    num_blocks_cached: int
    num_blocks_free: int
    #: Slots given, in all so far, like those below; one that was preempted is given one again.
    num_admitted: int
    num_preempted: int
    #: Tokens that were found in the prefix cache and not computed.
    num_tokens_saved: int
    #: Tokens that exact mode drew again and that came out otherwise; 0 unless something is wrong.
    num_replay_mismatches: int


@dataclass(slots=True)
class _Flight:
    """A step on its way."""

    step: Step
    #: With the life the sequence had when the step was issued, and the row's end.
    rows: tuple[tuple[Sequence, int, int] | None, ...]
    is_decode: bool
    num_lanes: int
    #: What each stage took, as far as it was told.
    seconds: dict[int, float] = field(default_factory=dict)


class Schedule:
    """The sequences of one replica: waiting, in slots, and in flight."""

    def __init__(self, shape: Shape, lanes: LaneModel, pace: Pace | None = None) -> None:
        self._shape, self._lanes = shape, lanes
        self._pace = pace or Pace(shape.num_stages, shape.prefill_chunk, shape.gap_factor)
        #: Slots of a group, whose rows are all in a decode step of exact mode: as many groups as
        #: there are lanes before anything is observed, so that a restart changes no shape.
        self._group_size = -(-shape.max_rows // lanes.default(shape.max_rows))
        self._slots = Slots(shape, self._group_size)
        self._flights: dict[int, _Flight] = {}
        self._num_issued = self._num_lanes = self._num_mismatches = 0
        #: Decode steps since the last prefill step.
        self._num_decodes = 0
        self._is_parked = False

    def __repr__(self) -> str:
        return f"<Schedule {self._slots!r} lanes={self._num_lanes} steps={self.num_in_flight}>"

    @property
    def num_in_flight(self) -> int:
        """Steps that were issued and not yet applied."""
        return len(self._flights)

    @property
    def in_flight(self) -> list[Sequence]:
        """The sequences that steps on their way work on, each once."""
        rows = [row for flight in self._flights.values() for row in flight.rows if row is not None]
        return list(dict.fromkeys(row[0] for row in rows if row[0].life == row[1]))

    @property
    def sequences(self) -> list[Sequence]:
        """All that were added and not removed, in order of arrival."""
        everyone = [*self._slots.waiting, *self._slots.running]
        return sorted(everyone, key=lambda sequence: sequence.arrival)

    def counts(self) -> Counts:
        """What there is at the moment, and how often what happened so far."""
        slots, blocks = self._slots, self._slots.blocks
        used, cached = blocks.num_used, blocks.num_cached
        return Counts(
            len(slots.waiting),
            len(slots.running),
            self.num_in_flight,
            self._num_lanes,
            used,
            cached,
            self._shape.num_blocks - used - cached,
            slots.num_admitted,
            slots.num_preempted,
            slots.num_tokens_saved,
            self._num_mismatches,
        )

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait for a slot; also one that was removed, to compute it anew.

        Raises:
            ValueError: it has no token, or more than a context holds.
        """
        self._slots.add(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Give up a sequence, complete or not; its slot is free at once.

        A step of it may still be in flight. Stages work in order, so a successor's first step
        reaches each cache after it, and what that step draws is not taken.
        """
        self._slots.remove(sequence)

    def issue(self) -> Step | None:
        """The next step to send, or None when there is nothing to do before a result comes."""
        if self._is_parked:
            return None
        everyone = (*self._slots.waiting, *self._slots.running)
        suspects = [each for each in everyone if each.is_suspect]
        alone = min(suspects, key=lambda suspect: suspect.arrival, default=None)
        if alone is None:
            for sequence in self._slots.admit():
                # It has waited for no step yet: who has a slot already may have.
                sequence.last_issue = self._num_issued
            running = self._slots.running
        elif self._is_shared_with(alone):
            return None
        else:
            self._slots.admit_alone(alone)
            running = [alone]
        behind: list[Sequence] = []
        decoding: list[Sequence] = []
        for sequence in running:
            if not sequence.is_faulty:
                (behind if self._is_behind(sequence) else decoding).append(sequence)
        if self._num_decodes > 0 and self._num_decodes >= self._num_lanes:
            # A round of decode steps went before: nobody's prompt waits for ever.
            return self._prefill(behind, decoding) or self._decode(decoding)
        return self._decode(decoding) or self._prefill(behind, decoding)

    def apply(
        self, number: int, draws: Items[Draw | None], seconds: float | None = None
    ) -> list[tuple[Sequence, Draw]]:
        """Take the result of a step: a draw for each of its rows, None where none was asked for.

        ``seconds``: from sending the step to its result, to learn what the links cost. Results
        come in the order the steps were issued; that of a step from before a reset is not taken.

        Returns:
            The sequences that grew and the draw each grew by. One whose draw has a fault is among
            them and did not grow; it is in no further step until it is removed or all is reset.
        """
        flight = self._flights.pop(number, None)
        if flight is None:
            return []
        if seconds is not None and len(flight.seconds) == self._shape.num_stages:
            self._lanes.observe_links(seconds - sum(flight.seconds.values()))
        grown = []
        for row, draw in zip(flight.rows, draws, strict=True):
            if row is not None and draw is not None and self._grow(*row, draw):
                grown.append((row[0], draw))
        return grown

    def observe(self, number: int, stage: int, seconds: float) -> None:
        """A stage computed so long for a step; told before the step's result is applied."""
        flight = self._flights.get(number)
        if flight is None:
            return
        step, flight.seconds[stage] = flight.step, seconds
        if flight.is_decode:
            self._lanes.observe(flight.num_lanes, len(step.rows), stage, seconds)
        else:
            self._pace.observe(stage, len(step.rows) * step.width, step.window, seconds)

    def reset(self) -> None:
        """Every stage lost its cache: all sequences wait again, in order of arrival.

        Steps in flight are forgotten; their results may still be applied and change nothing.
        """
        self._flights.clear()
        self._slots.reset()
        self._is_parked = False

    def relearn(self) -> None:
        """The stages were cut anew: what their steps took before says nothing any more."""
        self._lanes.forget()
        self._pace.forget()

    def park(self) -> None:
        """Issue nothing more until the next reset; results of steps in flight are still taken."""
        self._is_parked = True

    def _is_shared_with(self, alone: Sequence) -> bool:
        """Whether a step in flight works on another sequence, one that was removed included."""
        rows = [row for flight in self._flights.values() for row in flight.rows if row is not None]
        return any(row[0] is not alone for row in rows)

    def _is_behind(self, sequence: Sequence) -> bool:
        """Whether a prefill step is next for it."""
        if self._shape.is_exact:
            return sequence.num_cached < sequence.num_prompt
        return sequence.num_missing > 1

    def _grow(self, sequence: Sequence, life: int, end: int, draw: Draw) -> bool:
        if sequence.life != life or sequence.slot is None or sequence.is_faulty:
            return False
        if end < len(sequence.token_ids) and not draw.fault:
            self._num_mismatches += draw.token_id != sequence.token_ids[end]
            return False
        if draw.fault:
            sequence.is_faulty = True
        else:
            sequence.token_ids.append(draw.token_id)
        return True

    def _decode(self, decoding: list[Sequence]) -> Step | None:
        """A decode step, unless all lanes are in flight or nobody is ready."""
        num_in_flight = sum(flight.is_decode for flight in self._flights.values())
        while any(each.num_missing for each in decoding):
            lanes = self._lanes.choose(len(decoding))
            if not self._shape.is_exact and num_in_flight >= lanes:
                return None
            chosen = self._chosen(decoding, lanes)
            if kept := self._slots.grow(chosen):
                self._num_lanes = lanes
                return self._send(self._decode_shares(kept), is_decode=True)
            if not chosen:
                return None
            decoding = [each for each in decoding if each.slot is not None]
        return None

    def _chosen(self, decoding: list[Sequence], lanes: int) -> list[Sequence]:
        if not self._shape.is_exact:
            # In a cycle there are as many steps as lanes, and as many of prefill at most.
            return batching.lane_of(decoding, lanes, self._num_issued - 4 * lanes)
        ready = [each for each in decoding if each.num_missing]
        busy = {
            batching.slot_of(row[0]) // self._group_size
            for flight in self._flights.values()
            for row in flight.rows
            if flight.is_decode and row is not None and row[0].slot is not None
        }
        return batching.group_of(ready, self._group_size, busy)

    def _decode_shares(self, chosen: list[Sequence]) -> list[Share]:
        if not self._shape.is_exact:
            return batching.decode(chosen, is_in_place=self._shape.is_home)
        return batching.decode_group(chosen, self._group_size, self._shape.max_rows)

    def _prefill(self, behind: list[Sequence], decoding: list[Sequence]) -> Step | None:
        """A prefill step, unless those that decode would wait too long for it."""
        lanes = self._lanes.choose(len(decoding)) if decoding else 0
        # Stages that no lane fills may as well prefill; without any, one more hides the driver.
        most = max(1, self._shape.num_stages - lanes) if decoding else self._shape.num_stages + 1
        num_in_flight = sum(not flight.is_decode for flight in self._flights.values())
        is_too_soon = any(each.num_prefills_passed >= most for each in decoding)
        if not behind or num_in_flight >= most or is_too_soon:
            return None
        if self._shape.is_exact:
            shares = batching.prefill_exact(behind, self._shape.prefill_chunk)
            step = self._send(shares, self._shape.prefill_chunk)
        else:
            step = self._send(batching.prefill(behind, self._budget(behind, decoding, most)))
        for sequence in decoding:
            sequence.num_prefills_passed += 1
        return step

    def _budget(self, behind: list[Sequence], decoding: list[Sequence], most: int) -> int:
        """Tokens for the next prefill step."""
        start = min(behind, key=lambda sequence: sequence.arrival).num_cached
        if not decoding:
            return self._pace.fill(sum(each.num_missing for each in behind), start)
        # The gap to keep short is the one that all will have: few that decode have a shorter one,
        # and held to it many prompts would be computed in the least efficient pieces.
        cycle_s = self._lanes.cycle_s(min(len(decoding) + len(behind), self._shape.max_rows))
        return self._pace.beside(cycle_s, start, most)

    def _send(self, shares: list[Share], width: int = 0, *, is_decode: bool = False) -> Step:
        self._num_issued += 1
        self._num_decodes = self._num_decodes + 1 if is_decode else 0
        step = batching.write(self._num_issued, shares, width)
        opens = tuple(opened for share in shares for opened in self._opens(share))
        rows = tuple(map(_row, shares))
        for share in shares:
            if share.sequence is not None:
                self._slots.write(share.sequence, share.num_tokens)
                share.sequence.last_issue = self._num_issued
                share.sequence.num_prefills_passed = 0
        changes = self._slots.flush()
        step = replace(step, opens=opens, tables=changes.tables, copies=changes.copies)
        self._flights[step.number] = _Flight(step, rows, is_decode, self._num_lanes)
        return step

    def _opens(self, share: Share) -> list[Open]:
        """What the last stage is told of a row's sequence.

        In exact mode known tokens are drawn again, so that at first it knows of none; before the
        first new one it is told what they are, whatever it drew.
        """
        sequence = share.sequence
        if sequence is None:
            return []
        is_known = share.end == len(sequence.token_ids)
        if sequence.is_open and not (sequence.is_replaying and is_known):
            return []
        sequence.is_open = True
        has_known = len(sequence.token_ids) > sequence.num_prompt
        sequence.is_replaying = self._shape.is_exact and has_known and not is_known
        return [sequence.opening(0 if sequence.is_replaying else None)]


def _row(share: Share) -> tuple[Sequence, int, int] | None:
    return None if share.sequence is None else (share.sequence, share.sequence.life, share.end)
