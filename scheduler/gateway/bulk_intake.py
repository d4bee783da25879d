"""Takes the inputs of a bulk in as they arrive: lines, batches, submissions, tasks on disk.

Neither the body nor the bulk is ever held whole: a batch is read, parsed, accepted, and only then
the next is read, so a client that sends faster than the disk writes waits at its socket. What was
accepted before a line that is refused stays accepted.

A line is the model's input as an object, or such an object under ``input`` beside the options of
the one task. The first line that is there already is compared and not doubled; those before it are
not looked at.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from handlers.model_config import ModelConfig
from scheduler.bulk import Bulk
from scheduler.bulk_book import BATCH
from scheduler.errors import InvalidRequest, PlaitError, QuotaExceeded
from scheduler.gateway.bodies import json_object
from scheduler.gateway.front import Front, seed_of
from scheduler.gateway.submission import Options, parse_options
from scheduler.records import changed
from scheduler.task import Submission

#: Fields of a line whose input stands under "input".
LINE_FIELDS: Final = ("input", "priority", "deadline_s")
#: Bytes of lines after which a batch is accepted although it has room for more.
BATCH_BYTES: Final = 1024 * 1024


class UploadStopped(Exception):
    """An upload ended before its body did; what was accepted before stays accepted."""

    def __init__(self, error: PlaitError, bulk: Bulk, line: int | None) -> None:
        """``line``: the one that was refused, from 1; None: no line is at fault."""
        super().__init__(str(error))
        self.error, self.bulk, self.line = error, bulk, line


@dataclass(frozen=True, slots=True)
class Line:
    """A line that is not empty."""

    #: Of the body, from 1.
    number: int
    text: bytes


async def lines(pieces: AsyncIterator[bytes], max_bytes: int) -> AsyncIterator[Line]:
    """The lines of a body, without those that are empty. One that is longer than ``max_bytes`` is
    the last, and is cut one byte behind them."""
    rest, number = b"", 1
    async for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        for text in whole:
            if text.strip():
                yield Line(number, text[: max_bytes + 1])
            if len(text) > max_bytes:
                return
            number += 1
        if len(rest) > max_bytes:
            yield Line(number, rest[: max_bytes + 1])
            return
    if rest.strip():
        yield Line(number, rest)


class Upload:
    """One body of inputs for one bulk."""

    def __init__(
        self, front: Front, config: ModelConfig, bulk: Bulk, start: int, max_line_bytes: int
    ) -> None:
        """``start``: the place of the body's first input."""
        self._front, self._config = front, config
        self._max_line_bytes = max_line_bytes
        self.bulk = bulk
        self._place = start
        self._batch: list[Line] = []
        self._num_bytes = 0

    def __repr__(self) -> str:
        return f"<Upload bulk={self.bulk.id} place={self._place}>"

    async def receive(self, pieces: AsyncIterator[bytes]) -> Bulk:
        """Accept every input of the body; the bulk afterwards.

        Raises:
            UploadStopped: an input was refused, or nothing can be accepted just now.
        """
        async for line in lines(pieces, self._max_line_bytes):
            await self._take(line)
        await self._accept_batch()
        return self.bulk

    async def _take(self, line: Line) -> None:
        if self._place < self.bulk.num_inputs - 1 and not self._batch:
            self._place += 1
            return
        self._batch.append(line)
        self._num_bytes += len(line.text)
        if len(self._batch) >= BATCH or self._num_bytes >= BATCH_BYTES:
            await self._accept_batch()

    async def _accept_batch(self) -> None:
        batch, self._batch, self._num_bytes = self._batch, [], 0
        if not batch:
            return
        submissions, error = await asyncio.to_thread(self._parse, batch)
        try:
            self._front.check_open()
            self._front.check_pressure(len(submissions))
            await self._accept(submissions)
        except PlaitError as refusal:
            raise UploadStopped(refusal, self.bulk, None) from refusal
        if error is not None:
            raise UploadStopped(error, self.bulk, batch[len(submissions)].number)

    async def _accept(self, submissions: Sequence[Submission]) -> None:
        """Accept a batch, or as much of it as the tenant's quotas have room for."""
        if not submissions:
            return
        try:
            self.bulk = await self._front.bulks.extend(self.bulk.id, self._place, submissions)
        except QuotaExceeded:
            if len(submissions) == 1:
                raise
            half = len(submissions) // 2
            await self._accept(submissions[:half])
            await self._accept(submissions[half:])
        else:
            self._place += len(submissions)

    # -- in a thread

    def _parse(self, batch: Sequence[Line]) -> tuple[list[Submission], PlaitError | None]:
        """The submissions of a batch up to the first line that is refused, and why it is."""
        found: list[Submission] = []
        for place, line in enumerate(batch, self._place):
            try:
                found.append(self._submission(place, line))
            except PlaitError as error:
                return found, error
        return found, None

    def _submission(self, place: int, line: Line) -> Submission:
        if len(line.text) > self._max_line_bytes:
            message = f"body: the line is longer than the {self._max_line_bytes} bytes allowed"
            raise InvalidRequest(message, field="body", status=413)
        document, options = _split(json_object(line.text))
        bulk = self.bulk
        # Of place and bulk, so that a line that is sent again is the same request.
        seed = seed_of(bulk.id, str(place))
        given = self._front.submission(self._config, document, options, bulk.tenant, seed)
        # As it will be read back: JSON knows no tuples.
        stored = json.loads(json.dumps(given.document))
        return changed(
            given,
            document=stored,
            priority_class=bulk.priority_class,
            bulk_id=bulk.id,
            bulk_index=place,
        )


def _split(fields: dict[str, Any]) -> tuple[dict[str, Any], Options]:
    """A line as the handler's document and the options of its task. The input of an encoder is
    called "input" too, and is no object."""
    if not isinstance(fields.get("input"), dict):
        return fields, Options()
    for name in fields:
        if name not in LINE_FIELDS:
            message = f"{name:.64}: unknown beside input; allowed are: {', '.join(LINE_FIELDS)}"
            raise InvalidRequest(message, field=name[:64])
    options = {name: value for name, value in fields.items() if name != "input"}
    return fields["input"], parse_options(options)
