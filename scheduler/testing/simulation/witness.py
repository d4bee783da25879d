"""Judges every row that reaches the disk by the promises, from what it has seen itself.

It trusts neither the table of legal moves nor the code that writes: it keeps its own account of
each task, and knows beforehand what every task must answer. Runners sign what they send with the
fencing token they hold (in the log probabilities of a chunk, in an outcome's words), so a write
under an old token shows although it says what the right one would have said.
"""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scheduler.testing import output
from scheduler.testing.simulation.referee import Referee

FINAL = {"succeeded", "failed", "cancelled", "expired"}
#: Moves a task may make, by the states they begin in. Written down here once more on purpose.
MOVES = {
    "queued": {"leased", "cancelled", "expired", "paused"},
    "delayed": {"queued", "cancelled", "expired", "paused"},
    "paused": {"queued", "cancelled", "expired"},
    "leased": {"queued", "delayed", "paused", *FINAL},
}
_SIGNATURE = re.compile(r"fence (\d+)")


@dataclass(slots=True)
class Account:
    """What is known of a task."""

    document: Mapping[str, Any]
    row: dict[str, Any]
    #: Tokens and text of each answer on disk.
    tokens: list[list[int]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    num_chunks: int = 0


class Witness:
    """Collects problems; each begins with the number of the promise that is broken."""

    def __init__(self, columns: Sequence[str], referee: Referee, *, max_attempts: int) -> None:
        self.problems: list[str] = []
        self.accounts: dict[str, Account] = {}
        #: What was asked for, by task: "cancel", "pause", "requeue", as it was sent.
        self.asked: set[tuple[str, str]] = set()
        self.num_commits = 0
        #: How attempts ended.
        self.attempts: Counter[str] = Counter()
        #: Of everything that was written, in order.
        self.digest = 0
        self.referee = referee
        self._columns = list(columns)
        self._max_attempts = max_attempts

    def report(self, problem: str) -> None:
        self.problems.append(problem)

    def committed(self, written: Sequence[tuple[Any, ...]]) -> None:
        """What one command has written is on disk."""
        self.num_commits += 1
        self.digest = zlib.crc32(repr(written).encode(), self.digest)
        for kind, *values in written:
            getattr(self, f"_{kind}")(*values)
        self.problems += [f"promise 5: {problem}" for problem in self.referee.look()]

    # -- rows

    def _task(self, *values: Any) -> None:
        row = dict(zip(self._columns, values, strict=True))
        account = self.accounts.get(row["id"])
        if account is None:
            self._accepted(row)
        else:
            self._moved(account, account.row, row)
            account.row = row

    def _accepted(self, row: dict[str, Any]) -> None:
        self.accounts[row["id"]] = Account({}, row)
        self.referee.task_accepted(row["estimated_cost"])
        if row["state"] != "queued" or row["fence"]:
            self.report(f"promise 1: {row['id']} begins as {row['state']}")

    def _document(self, task_id: str, text: str) -> None:
        account = self.accounts[task_id]
        account.document = json.loads(text)
        num_answers = output.num_answers(account.document)
        account.tokens = [[] for _ in range(num_answers)]
        account.texts = [""] * num_answers

    def _moved(self, account: Account, before: dict[str, Any], row: dict[str, Any]) -> None:
        task_id, old, new = row["id"], before["state"], row["state"]
        if old in FINAL:
            self._left_final(before, row)
        elif new != old and new not in MOVES[old]:
            self.report(f"promise 1: {task_id} went from {old} to {new}")
        is_claim = new == "leased" and old != "leased"
        if row["fence"] != before["fence"] + is_claim:
            self.report(
                f"promise 2: {task_id} went to {new}, fence {before['fence']} to {row['fence']}"
            )
        if new == old == "leased" and row["runner"] != before["runner"]:
            self.report(f"promise 2: the lease of {task_id} went from runner to runner")
        if (row["runner"] is not None) != (new == "leased"):
            self.report(f"promise 2: {task_id} is {new} and held by {row['runner']}")
        if row["num_chunks"] != account.num_chunks:
            self.report(
                f"promise 3: {task_id} counts {row['num_chunks']} of {account.num_chunks} chunks"
            )
        if new in FINAL and new != old:
            self._ended(account, row, old)
        if new == "paused" and old != "paused" and ("pause", task_id) not in self.asked:
            self.report(f"promise 1: {task_id} was paused, which nobody asked for")
        self.referee.task_moved(before, row)

    def _left_final(self, before: dict[str, Any], row: dict[str, Any]) -> None:
        is_requeued = before["is_dead"] and row["state"] == "queued"
        if is_requeued and ("requeue", row["id"]) in self.asked:
            return
        if changed := [name for name, value in row.items() if before[name] != value]:
            self.report(f"promise 1: {row['id']} was {before['state']}, and {changed} changed")

    def _ended(self, account: Account, row: dict[str, Any], old: str) -> None:
        """Whether it may have ended so."""
        task_id, state = row["id"], row["state"]
        if state == "succeeded":
            self._check_signature(json.loads(row["result"])["finish_reason"], row["fence"], task_id)
            self._check_whole(account, task_id)
        elif state == "cancelled" and ("cancel", task_id) not in self.asked:
            self.report(f"promise 1: {task_id} was cancelled, which nobody asked for")
        elif state == "expired":
            deadline = row["deadline_at"]
            if deadline is None or row["finished_at"] < deadline:
                self.report(f"promise 1: {task_id} expired before its deadline {deadline}")
        elif state == "failed":
            self._check_failed(account, row, old)

    def _check_failed(self, account: Account, row: dict[str, Any], old: str) -> None:
        message = json.loads(row["error"])["message"]
        if row["is_dead"]:
            if row["num_lost"] < self._max_attempts:
                self.report(f"promise 4: {row['id']} died after {row['num_lost']} lost attempts")
        elif row["resume"] == "none" and "cannot go on" in message:
            if not row["num_tokens"]:
                self.report(f"promise 4: {row['id']} was given up without output")
        elif "fails_after" in account.document:
            self._check_signature(message, row["fence"], row["id"])
        else:
            self.report(f"promise 4: {row['id']} failed from {old}: {message}")

    def _check_whole(self, account: Account, task_id: str) -> None:
        for answer, text in enumerate(account.texts):
            if text != (whole := output.whole_text(account.document, answer)):
                self.report(
                    f"promise 4: answer {answer} of {task_id} ended as {text!r}, not {whole!r}"
                )

    def _chunk(
        self, task_id: str, seq: int, answer: int, token_ids: str, text: str, logprobs: str | None
    ) -> None:
        account = self.accounts[task_id]
        if seq != account.num_chunks:
            self.report(f"promise 3: {task_id} got chunk {seq} where {account.num_chunks} is next")
        account.num_chunks += 1
        if account.row["state"] != "leased":
            self.report(f"promise 2: {task_id} is {account.row['state']} and got output")
        if logprobs is not None:
            fence = -int(json.loads(logprobs)[0]["logprob"])
            self._check_fence(fence, account.row["fence"], task_id)
        account.tokens[answer] += json.loads(token_ids)
        account.texts[answer] += text
        due = output.tokens(account.document, answer)[: len(account.tokens[answer])]
        if tuple(account.tokens[answer]) != due:
            self.report(f"promise 3: answer {answer} of {task_id} has other tokens from {seq} on")
        if not output.whole_text(account.document, answer).startswith(account.texts[answer]):
            self.report(f"promise 3: answer {answer} of {task_id} says {account.texts[answer]!r}")

    def _attempt(self, task_id: str, fence: int, outcome: str, reason: str) -> None:
        self.attempts[outcome] += 1
        self._check_signature(reason, fence, task_id)

    def _removed(self, task_id: str) -> None:
        self.report(f"promise 3: something of {task_id} was changed or removed")

    def _check_signature(self, words: str, fence: int, task_id: str) -> None:
        if (signed := _SIGNATURE.search(words)) is not None:
            self._check_fence(int(signed[1]), fence, task_id)

    def _check_fence(self, signed: int, fence: int, task_id: str) -> None:
        if signed != fence:
            self.report(f"promise 2: fence {signed} wrote to {task_id}, which is at fence {fence}")

    # -- what fairness is judged by

    def _flow(self, *values: Any) -> None:
        self.referee.flow_moved(*values)

    def _band(self, *values: Any) -> None:
        self.referee.band_moved(*values)

    def _tenant(self, name: str, weight_permille: int) -> None:
        self.referee.weight_set(name, weight_permille)
