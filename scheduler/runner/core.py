"""What a runner holds, and what it owes the control plane.

Events in (a grant, a chunk, an acknowledgement, a welcome), messages and orders out, as values.
Four rules. Chunks are numbered here, going on from the grant's number, and kept until they are
acknowledged. An outcome is kept until its acknowledgement is final. While there is no welcomed
connection nothing is sent: a welcome says what the journal lacks, and that is sent again. Where the
grant says so, what follows an attempt's first chunk is gathered for a while, into one.

It knows no clock, no socket and no TorchServe.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from handlers.wire import Chunk, Failure, Finish
from scheduler.rpc import plait_pb2 as pb
from scheduler.rpc.logprobs import to_messages

#: Longest result that is sent; a gRPC message holds a little more.
MAX_RESULT_BYTES = 60 * 1024 * 1024


@dataclass(slots=True)
class Lease:
    """A task this runner has the right to work on."""

    task_id: str
    fence: int
    model: str
    replica: str
    #: What is posted to TorchServe.
    document: Mapping[str, Any]
    #: Number the next chunk gets.
    next_seq: int
    #: Sent or to be sent, and not yet known to be on disk; in the order of their numbers.
    unacknowledged: deque[pb.RunnerMessage] = field(default_factory=deque)
    #: Most seconds for which chunks are gathered into one; 0: each is sent as it comes.
    journal_interval_s: float = 0.0
    #: What was gathered, and has no number yet; None: nothing.
    gathered: Chunk | None = None
    #: Whether anything has come of this attempt.
    has_begun: bool = False
    #: Text that came without tokens, by answer: it goes out with what follows it.
    held_text: dict[int, str] = field(default_factory=dict)
    #: The outcome, from the moment there is one.
    outcome: pb.RunnerMessage | None = None

    @property
    def first_kept_seq(self) -> int:
        """Number of the first chunk that can be sent again."""
        return self.unacknowledged[0].progress.seq if self.unacknowledged else self.next_seq

    def answers_held(self) -> list[int]:
        """Answers that have text to send."""
        return sorted(index for index, text in self.held_text.items() if text)

    @property
    def key(self) -> tuple[str, int]:
        return self.task_id, self.fence


@dataclass(frozen=True, slots=True)
class Step:
    """What to do after an event."""

    send: tuple[pb.RunnerMessage, ...] = ()
    start: tuple[Lease, ...] = ()
    #: Leases to stop working on.
    stop: tuple[tuple[str, int], ...] = ()
    #: Leases to :meth:`RunnerCore.flush` in so many seconds.
    gathers: tuple[tuple[tuple[str, int], float], ...] = ()


class RunnerCore:
    """The leases of one runner."""

    def __init__(self) -> None:
        self._leases: dict[str, Lease] = {}
        self._is_welcome = False

    def __repr__(self) -> str:
        unacknowledged = sum(len(lease.unacknowledged) for lease in self._leases.values())
        return f"<RunnerCore leases={len(self._leases)} unacknowledged={unacknowledged}>"

    def held(self) -> list[pb.HeldLease]:
        """Every lease, those that wait for their last acknowledgement included."""
        return [pb.HeldLease(task_id=x.task_id, fence=x.fence) for x in self._leases.values()]

    def in_flight(self) -> dict[str, int]:
        """Leases that are being worked on, by replica."""
        counts: dict[str, int] = {}
        for lease in self._leases.values():
            if lease.outcome is None:
                counts[lease.replica] = counts.get(lease.replica, 0) + 1
        return counts

    def working_on(self, replica: str) -> list[tuple[str, int]]:
        """Leases the replica works on."""
        leases = self._leases.values()
        return [x.key for x in leases if x.replica == replica and x.outcome is None]

    def unfinished(self) -> list[tuple[str, int]]:
        """Leases that are being worked on."""
        return [x.key for x in self._leases.values() if x.outcome is None]

    def granted(self, grant: pb.Grant) -> Step:
        """Take a lease; one with an older fence for the task ends. A repeat changes nothing."""
        known = self._leases.get(grant.task_id)
        if known is not None and known.fence >= grant.fence:
            return Step()
        document = json.loads(grant.document_json)
        if grant.generated or grant.other_generated:
            document["generated"] = _generated(grant, document.get("n", 1))
        lease = Lease(
            grant.task_id,
            grant.fence,
            grant.model,
            grant.replica,
            document,
            grant.next_seq,
            journal_interval_s=grant.journal_interval_s,
        )
        self._leases[grant.task_id] = lease
        return Step(start=(lease,), stop=(known.key,) if known is not None else ())

    def produced(self, task_id: str, fence: int, chunk: Chunk) -> Step:
        """Number a chunk and send it."""
        lease = self._find(task_id, fence)
        if lease is None or lease.outcome is not None:
            return Step()
        num_answers = lease.document.get("n", 1)
        if not 0 <= chunk.index < num_answers:
            reason = f"its handler spoke of answer {chunk.index}; there are {num_answers}, from 0"
            return self.lost(task_id, fence, reason)
        if not chunk.token_ids:
            # The tail of a text. Were it written down and the worker lost before its finish, the
            # next attempt, which knows tokens only, would send the tail again.
            flushed = self._flush(lease)
            lease.held_text[chunk.index] = lease.held_text.get(chunk.index, "") + chunk.text
            return flushed
        is_first, lease.has_begun = not lease.has_begun, True
        if is_first or not lease.journal_interval_s:
            return self._progress(lease, chunk)
        return self._gather(lease, chunk)

    def flush(self, task_id: str, fence: int) -> Step:
        """Send what was gathered."""
        lease = self._find(task_id, fence)
        return Step() if lease is None else self._flush(lease)

    def finished(self, task_id: str, fence: int, finish: Finish) -> Step:
        """Send what was held back, then the end of a generation."""
        lease = self._find(task_id, fence)
        if lease is None or lease.outcome is not None:
            return Step()
        tails = [self._flush(lease)]
        tails += [self._progress(lease, Chunk((), "", index)) for index in lease.answers_held()]
        result: dict[str, Any] = {
            "finish_reason": finish.reason,
            "num_prompt_tokens": finish.num_prompt_tokens,
            "num_output_tokens": finish.num_output_tokens,
        }
        if finish.reasons:
            result["finish_reasons"] = list(finish.reasons)
        end = self.answered(task_id, fence, result)
        return Step(send=tuple(m for tail in tails for m in tail.send) + end.send)

    def answered(self, task_id: str, fence: int, result: Mapping[str, Any]) -> Step:
        """Send a whole result."""
        text = json.dumps(result, separators=(",", ":"))
        if len(text) > MAX_RESULT_BYTES:
            # The stream would break on it, and again on every repeat.
            message = f"the answer has {len(text)} bytes; at most {MAX_RESULT_BYTES} can be kept"
            return self.refused(task_id, fence, Failure(500, message))
        return self._end(task_id, fence, finish=pb.Finish(result_json=text))

    def refused(self, task_id: str, fence: int, failure: Failure) -> Step:
        """Send that the request is at fault."""
        error = pb.Error(status=failure.status, message=failure.message, field=failure.field)
        return self._end(task_id, fence, finish=pb.Finish(error=error))

    def lost(self, task_id: str, fence: int, reason: str) -> Step:
        """Give the lease back: the attempt was lost through no fault of the task."""
        return self._end(task_id, fence, release=pb.Release(reason=reason))

    def acknowledged(self, ack: pb.Ack) -> None:
        """Forget what is on disk."""
        lease = self._find(ack.task_id, ack.fence)
        if lease is None:
            return
        self._trim(lease, ack.next_seq)
        if ack.is_final:
            del self._leases[ack.task_id]

    def cancelled(self, task_id: str, fence: int) -> Step:
        """The lease has ended: stop, and say nothing more about it."""
        if self._find(task_id, fence) is None:
            return Step()
        del self._leases[task_id]
        return Step(stop=((task_id, fence),))

    def disconnected(self) -> None:
        """Keep what there is to say until the next welcome."""
        self._is_welcome = False

    def welcomed(self, kept: Iterable[pb.Ack]) -> Step:
        """Drop what was given away, and send again what the journal lacks."""
        self._is_welcome = True
        next_seqs = {(ack.task_id, ack.fence): ack.next_seq for ack in kept}
        stop, send = [], []
        for lease in list(self._leases.values()):
            if lease.key not in next_seqs:
                del self._leases[lease.task_id]
                stop.append(lease.key)
                continue
            next_seq = next_seqs[lease.key]
            self._trim(lease, next_seq)
            if next_seq < lease.first_kept_seq:
                # What was acknowledged is gone from the journal, and from here: no way to go on.
                lease.outcome = None
                lease.unacknowledged.clear()
                self.lost(*lease.key, f"the journal has lost output from chunk {next_seq} on")
                stop.append(lease.key)
            send += [*lease.unacknowledged, *([lease.outcome] if lease.outcome else [])]
        return Step(send=tuple(send), stop=tuple(stop))

    def _find(self, task_id: str, fence: int) -> Lease | None:
        lease = self._leases.get(task_id)
        return lease if lease is not None and lease.fence == fence else None

    def _gather(self, lease: Lease, chunk: Chunk) -> Step:
        before = lease.gathered
        if before is None:
            lease.gathered = chunk
            return Step(gathers=((lease.key, lease.journal_interval_s),))
        if before.index != chunk.index or bool(before.logprobs) != bool(chunk.logprobs):
            flushed = self._flush(lease)
            return Step(send=flushed.send, gathers=self._gather(lease, chunk).gathers)
        lease.gathered = Chunk(
            (*before.token_ids, *chunk.token_ids),
            before.text + chunk.text,
            chunk.index,
            (*before.logprobs, *chunk.logprobs),
        )
        return Step()

    def _flush(self, lease: Lease) -> Step:
        if (chunk := lease.gathered) is None:
            return Step()
        lease.gathered = None
        return self._progress(lease, chunk)

    def _progress(self, lease: Lease, chunk: Chunk) -> Step:
        message = pb.RunnerMessage(
            progress=pb.Progress(
                task_id=lease.task_id,
                fence=lease.fence,
                seq=lease.next_seq,
                token_ids=chunk.token_ids,
                text=lease.held_text.pop(chunk.index, "") + chunk.text,
                index=chunk.index,
                logprobs=to_messages(chunk.logprobs),
            )
        )
        lease.next_seq += 1
        lease.unacknowledged.append(message)
        return self._send(message)

    def _end(
        self,
        task_id: str,
        fence: int,
        finish: pb.Finish | None = None,
        release: pb.Release | None = None,
    ) -> Step:
        lease = self._find(task_id, fence)
        if lease is None or lease.outcome is not None:
            return Step()
        for outcome in (finish, release):
            if outcome is not None:
                outcome.task_id, outcome.fence = task_id, fence
        flushed = self._flush(lease)
        lease.outcome = pb.RunnerMessage(finish=finish, release=release)
        return Step(send=flushed.send + self._send(lease.outcome).send)

    def _send(self, message: pb.RunnerMessage) -> Step:
        return Step(send=(message,)) if self._is_welcome else Step()

    @staticmethod
    def _trim(lease: Lease, next_seq: int) -> None:
        waiting = lease.unacknowledged
        while waiting and waiting[0].progress.seq < next_seq:
            waiting.popleft()


def _generated(grant: pb.Grant, num_answers: int) -> list[Any]:
    """What earlier attempts produced, as the handler reads it."""
    if num_answers == 1:
        return list(grant.generated)
    answers = [list(grant.generated), *(list(each.token_ids) for each in grant.other_generated)]
    return answers + [[] for _ in range(num_answers - len(answers))]
