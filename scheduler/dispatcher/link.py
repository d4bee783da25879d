"""One runner's stream at the control plane, and the order in which its output is written down.

What a runner sends for a lease is written in the order it was sent, and what arrives while a write
is under way goes into the next one together. Leases do not wait for each other.

Text without tokens, the tail of an answer, is written with the answer's end or not at all: were it
on disk and the lease lost before the end, the next attempt, which knows tokens only, would send it
again.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import structlog

from scheduler.dispatcher import messages
from scheduler.dispatcher.sessions import LeaseKey
from scheduler.errors import PlaitError, StaleLease, StoreUnavailable
from scheduler.rpc import plait_pb2 as pb
from scheduler.task import JournalChunk
from scheduler.task_book import TaskBook

log = structlog.get_logger(__name__)

_STORE_PAUSE_S: Final = 0.2
_numbers = itertools.count(1)


class _OutOfStep(PlaitError):
    """A chunk came that does not follow those on disk."""


@dataclass(slots=True)
class _Inbox:
    """What of one lease waits to be written."""

    chunks: list[JournalChunk] = field(default_factory=list)
    outcome: pb.RunnerMessage | None = None
    writer: asyncio.Task[None] | None = None

    @property
    def is_ready(self) -> bool:
        """Whether any of it can be written."""
        return self.outcome is not None or bool(self.without_tail())

    def without_tail(self) -> tuple[JournalChunk, ...]:
        """Chunks up to the last that has tokens; what follows waits for the end of the answer."""
        count = len(self.chunks)
        while count and not self.chunks[count - 1].token_ids:
            count -= 1
        return tuple(self.chunks[:count])


class Link:
    """The stream of one runner session."""

    def __init__(
        self, hello: pb.Hello, book: TaskBook, lease_ended: Callable[[str, LeaseKey], None]
    ) -> None:
        """``lease_ended(runner_id, lease)`` is called when a lease is over."""
        self.runner_id = hello.runner_id
        #: Differs between two streams of the same process too.
        self.connection = f"{hello.session_id}/{next(_numbers)}"
        #: Its number among the runner's streams; 0 before it is registered.
        self.fence = 0
        #: What it showed to join; None: nothing, or it need not.
        self.authorization: str | None = None
        #: When the runner last said something, in the dispatcher's monotonic time.
        self.heard_at = 0.0
        self._book = book
        self._lease_ended = lease_ended
        self._inboxes: dict[LeaseKey, _Inbox] = {}
        self._outbox: asyncio.Queue[pb.ControlMessage | None] = asyncio.Queue()
        self._is_open = True

    def __repr__(self) -> str:
        return f"<Link {self.runner_id} open={self._is_open} writing={len(self._inboxes)}>"

    def send(self, message: pb.ControlMessage) -> None:
        """Say something to the runner; into the void once the stream is closed."""
        self._outbox.put_nowait(message)

    async def next_message(self) -> pb.ControlMessage | None:
        """What to say next, or None when the stream is to end."""
        return await self._outbox.get()

    def close(self) -> None:
        """End the stream. Writes under way come to their end; they carry a fence."""
        self._is_open = False
        self._outbox.put_nowait(None)

    def progressed(self, progress: pb.Progress) -> None:
        """A chunk arrived."""
        inbox = self._inbox(LeaseKey(progress.task_id, progress.fence))
        inbox.chunks.append(messages.chunk(progress))

    def finished(self, task_id: str, fence: int, outcome: pb.RunnerMessage) -> None:
        """A finish or a release arrived."""
        self._inbox(LeaseKey(task_id, fence)).outcome = outcome

    def _inbox(self, lease: LeaseKey) -> _Inbox:
        inbox = self._inboxes.setdefault(lease, _Inbox())
        if inbox.writer is None:
            inbox.writer = asyncio.create_task(self._write_all(lease, inbox), name="journal")
        return inbox

    async def _write_all(self, lease: LeaseKey, inbox: _Inbox) -> None:
        is_over = True
        try:
            while inbox.is_ready:
                try:
                    await self._write(lease, inbox)
                except StoreUnavailable as error:
                    if not self._is_open:
                        return  # the runner sends it again after its next hello
                    log.warning("store_refused", task_id=lease.task_id, error=str(error))
                    await asyncio.sleep(_STORE_PAUSE_S)
            is_over = not inbox.chunks
        except StaleLease as stale:
            self.send(messages.cancel(lease.task_id, lease.fence, str(stale)))
            self._lease_ended(self.runner_id, lease)
        except PlaitError as error:
            # The two ends disagree on what is on disk; a new hello settles it.
            log.error("runner_out_of_step", task_id=lease.task_id, error=str(error))
            self.close()
        except Exception as error:
            log.exception("output_not_written", task_id=lease.task_id, fence=lease.fence)
            await self._give_back(lease, error)
        finally:
            inbox.writer = None
            if is_over:
                self._inboxes.pop(lease, None)

    async def _write(self, lease: LeaseKey, inbox: _Inbox) -> None:
        outcome = inbox.outcome
        if outcome is not None and outcome.finish.WhichOneof("outcome") == "result_json":
            next_seq = await self._succeed(lease, tuple(inbox.chunks), outcome)
        else:
            chunks, next_seq = inbox.without_tail(), 0
            if chunks:
                next_seq = await self._append(lease, chunks)
                del inbox.chunks[: len(chunks)]
            if outcome is None or inbox.without_tail():
                self._acknowledge(lease, next_seq)
                return
            await self._conclude(lease, outcome)
        inbox.chunks.clear()
        inbox.outcome = None
        self._acknowledge(lease, next_seq, is_final=True)
        self._lease_ended(self.runner_id, lease)

    async def _succeed(
        self, lease: LeaseKey, chunks: tuple[JournalChunk, ...], outcome: pb.RunnerMessage
    ) -> int:
        result = json.loads(outcome.finish.result_json)
        try:
            task = await self._book.succeed(lease.task_id, lease.fence, result, chunks)
        except UnicodeError:
            raise  # the result's fault, not the order's
        except ValueError as gap:
            raise _OutOfStep(str(gap)) from gap
        return task.num_chunks

    async def _append(self, lease: LeaseKey, chunks: tuple[JournalChunk, ...]) -> int:
        try:
            return await self._book.append(lease.task_id, lease.fence, chunks)
        except ValueError as gap:
            raise _OutOfStep(str(gap)) from gap

    async def _give_back(self, lease: LeaseKey, error: Exception) -> None:
        """What cannot be written now cannot be later: the attempt is lost, and nothing hangs."""
        reason = f"what it sent could not be written down: {type(error).__name__}"
        with contextlib.suppress(StaleLease, StoreUnavailable):  # then the lease just runs out
            await self._book.release(lease.task_id, lease.fence, reason)
        self.send(messages.cancel(lease.task_id, lease.fence, reason))
        self._lease_ended(self.runner_id, lease)

    async def _conclude(self, lease: LeaseKey, outcome: pb.RunnerMessage) -> None:
        if outcome.WhichOneof("body") == "release":
            reason = outcome.release.reason
            log.info("lease_released", task_id=lease.task_id, fence=lease.fence, reason=reason)
            await self._book.release(lease.task_id, lease.fence, reason)
        else:
            error = messages.task_error(outcome.finish.error)
            await self._book.fail(lease.task_id, lease.fence, error)

    def _acknowledge(self, lease: LeaseKey, next_seq: int, *, is_final: bool = False) -> None:
        ack = messages.ack(lease.task_id, lease.fence, next_seq=next_seq, is_final=is_final)
        self.send(pb.ControlMessage(ack=ack))
