"""Bulks over the gateway's REST API: hand many inputs in, follow them, read what became of them.

Inputs go up in pieces, each of which the gateway answers with how many it has; so an upload goes
on where it was after whatever broke it, within this call or in a later one under the same key.
Outcomes come down as one stream, which goes on from the last one that was read.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final, cast

from scheduler.client import shapes
from scheduler.client.calls import BROKEN, TIMEOUT_S, Calls, part, passes, reason, refusal
from scheduler.client.patience import Patience
from scheduler.client.problems import ApiError, InputRefused, Unreachable

LINES: Final = "application/x-ndjson"
#: Inputs, and bytes of them, that go up in one request.
PIECE_INPUTS: Final = 1000
PIECE_BYTES: Final = 1024 * 1024

#: An input, or one under "input" beside its options; bytes are such an object as JSON on one line.
Input = Mapping[str, Any] | bytes


class Bulks(Calls):
    """What owners do with bulks."""

    def submit_bulk(
        self,
        model: str,
        inputs: Iterable[Input],
        *,
        priority_class: str | None = None,
        name: str = "",
        idempotency_key: str | None = None,
        on_accepted: Callable[[int], None] = lambda _count: None,
    ) -> shapes.Bulk:
        """Hand in many inputs; returns the bulk when all are on disk.

        Under a key that was used before it goes on where that upload ended; ``inputs`` are all of
        them again. A quota that is used up is waited for, as long as it takes. ``on_accepted``
        hears how many are accepted.

        Raises:
            InputRefused: an input cannot be served; those before it are accepted, and the rest can
                be handed in under the same key when it is right.
            ApiError: the bulk was refused.
            Unreachable: patience ran out; the same key goes on with it.
        """
        key = idempotency_key or uuid.uuid4().hex
        query = {"model": model, "class": priority_class, "name": name or None, "close": "false"}
        headers = {"Idempotency-Key": key, "Content-Type": LINES}
        bulk = cast(shapes.Bulk, self.call("POST", "/v1/bulks", b"", query, headers))
        on_accepted(bulk["num_inputs"])
        if bulk["state"] != "open":
            return bulk
        # The last one that is there goes up again: the gateway compares it.
        place = max(bulk["num_inputs"] - 1, 0)
        for piece, is_last in _pieces(islice(inputs, place, None)):
            bulk = self._send(bulk["bulk_id"], place, piece, is_last=is_last)
            place += len(piece)
            on_accepted(bulk["num_inputs"])
        return bulk

    def bulk(self, bulk_id: str) -> shapes.Bulk:
        """A bulk with its inputs counted by state."""
        return cast(shapes.Bulk, self.call("GET", f"/v1/bulks/{part(bulk_id)}"))

    def bulks(self, *, limit: int = 100, before: str | None = None) -> shapes.BulkPage:
        """A page of the tenant's bulks, newest first; ``before`` is the last id of the one seen."""
        query = {"limit": limit, "before": before}
        return cast(shapes.BulkPage, self.call("GET", "/v1/bulks", query=query))

    def cancel_bulk(self, bulk_id: str) -> shapes.Bulk:
        """Take a bulk back; inputs that have ended stay as they are."""
        return cast(shapes.Bulk, self.call("POST", f"/v1/bulks/{part(bulk_id)}/cancel"))

    def bulk_results(
        self, bulk_id: str, start: int = 0, *, is_partial: bool = False
    ) -> Iterator[shapes.InputOutcome]:
        """What becomes of the inputs from place ``start`` on, in order, each as soon as it and all
        before it have ended; ``is_partial``: only those that have ended by now.

        Raises:
            ApiError: there is no such bulk.
            Unreachable: patience ran out; the bulk goes on.
        """
        patience = Patience(self._patience_s, self._tell)
        while True:
            try:
                for line in self._outcomes(bulk_id, start, is_partial=is_partial):
                    outcome = cast(shapes.InputOutcome, json.loads(line))
                    patience.renew()
                    start = outcome["index"] + 1
                    yield outcome
                return
            except BROKEN as error:
                problem = f"the results from {self._address} broke off"
                if not patience.pause(problem):
                    raise Unreachable(f"{problem}: {reason(error)}") from error
            except ApiError as error:
                if not passes(error) or not patience.pause(error.message, error.retry_after_s or 0):
                    raise

    def _outcomes(self, bulk_id: str, start: int, *, is_partial: bool) -> Iterator[bytes]:
        query = {"from": str(start), "partial": str(is_partial).lower()}
        url = f"{self._address}/v1/bulks/{part(bulk_id)}/results"
        with self._session.get(url, params=query, timeout=TIMEOUT_S, stream=True) as answer:
            if not answer.ok:
                raise refusal(answer, answer.json())
            for line in answer.iter_lines():
                if line.strip():
                    yield line

    def _send(self, bulk_id: str, place: int, piece: list[bytes], *, is_last: bool) -> shapes.Bulk:
        """Send a piece until all of it is accepted."""
        path = f"/v1/bulks/{part(bulk_id)}/inputs"
        query = {"from": place, "close": str(is_last).lower()}
        body, headers = b"\n".join(piece), {"Content-Type": LINES}
        patience = Patience(self._patience_s, self._tell)
        while True:
            try:
                return cast(shapes.Bulk, self.call_once("POST", path, body, query, headers))
            except BROKEN as error:
                problem = f"nobody answers at {self._address}"
                if not patience.pause(problem):
                    raise Unreachable(f"{problem}: {reason(error)}") from error
            except ApiError as error:
                if error.document.get("line") is not None:
                    raise InputRefused(error, error.document["num_inputs"]) from error
                if not passes(error) or not self._wait(patience, error):
                    raise

    def _wait(self, patience: Patience, error: ApiError) -> bool:
        """Wait before the next try; False: patience has run out."""
        pause_s = error.retry_after_s or 0.0
        if error.status != 429:
            return patience.pause(error.message, pause_s)
        # The tenant's own tasks have to be worked off first, and that may take hours.
        patience.renew()
        return Patience(self._patience_s + pause_s, self._tell).pause(error.message, pause_s)


def _pieces(inputs: Iterable[Input]) -> Iterator[tuple[list[bytes], bool]]:
    """The inputs as lines, piece by piece, and whether it is the last; at least one piece."""
    piece: list[bytes] = []
    size = 0
    for each in inputs:
        line = each if isinstance(each, bytes) else json.dumps(dict(each)).encode()
        if piece and (len(piece) >= PIECE_INPUTS or size + len(line) > PIECE_BYTES):
            yield piece, False
            piece, size = [], 0
        piece.append(line)
        size += len(line)
    yield piece, True
