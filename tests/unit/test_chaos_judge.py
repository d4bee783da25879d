"""A history in which a promise was broken is not let pass, whichever it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from scheduler.testing.chaos.history import (
    Accepted,
    Attached,
    Cancelled,
    History,
    Read,
    Record,
    Seen,
    Sent,
    Stored,
    StoredAttempt,
    StoredChunk,
    StoredTask,
    Unregistered,
)
from scheduler.testing.chaos.judge import answered_before, judge


def expected(document: Mapping[str, Any]) -> tuple[tuple[int, ...], str]:
    return tuple(range(document["max_new_tokens"])), "abc"[: document["max_new_tokens"]]


def kept() -> History:
    """One task of three tokens that lost an attempt after the first; every promise was kept."""
    records: list[Record] = [
        Sent(0.0, "k", "ann", {"max_new_tokens": 3}),
        Accepted(0.1, "k", "t"),
        Attached(0.2, "k", "t", 0),
        Seen(0.2, "k", "t", "leased", 1, "r1", False),
        Read(0.3, "k", "t", 1, (0,), "a"),
        Seen(0.4, "k", "t", "queued", 1, None, False),
        Seen(0.5, "k", "t", "leased", 2, "r2", False),
        Read(0.6, "k", "t", 2, (1,), "b"),
        Attached(0.7, "k", "t", 2),
        Read(0.8, "k", "t", 3, (2,), "c"),
        Seen(0.9, "k", "t", "succeeded", 2, None, True),
        Unregistered(1.0, "node-1", "demo__r0", 0),
    ]
    stored = Stored(
        [StoredTask("t", "ann", "k", "succeeded", 2, 3, None)],
        [
            StoredAttempt("t", 1, 0.4, "lost"),
            StoredAttempt("t", 2, 0.9, "succeeded"),
        ],
        [StoredChunk("t", seq, (seq,), "abc"[seq]) for seq in range(3)],
    )
    return History(0.0, records, stored)


def test_a_history_in_which_all_promises_were_kept_passes() -> None:
    assert judge(kept(), expected) == []


def change(history: History, kind: type[Record], which: int, **changes: Any) -> None:
    """Edit one record of a kind."""
    places = [i for i, record in enumerate(history.records) if isinstance(record, kind)]
    place = places[which]
    history.records[place] = replace(history.records[place], **changes)


def change_task(history: History, **changes: Any) -> None:
    history.stored.tasks[0] = replace(history.stored.tasks[0], **changes)


def change_attempt(history: History, which: int, **changes: Any) -> None:
    history.stored.attempts[which] = replace(history.stored.attempts[which], **changes)


def change_chunk(history: History, which: int, **changes: Any) -> None:
    history.stored.chunks[which] = replace(history.stored.chunks[which], **changes)


def double(history: History) -> None:
    history.stored.tasks.append(replace(history.stored.tasks[0], id="t2"))
    history.stored.attempts += [replace(a, task_id="t2") for a in history.stored.attempts]
    history.stored.chunks += [replace(c, task_id="t2") for c in history.stored.chunks]


def repeat_chunk(history: History) -> None:
    place = next(i for i, r in enumerate(history.records) if isinstance(r, Read))
    history.records.insert(place, history.records[place])


def drop_read(history: History) -> None:
    history.records.remove(next(r for r in history.records if isinstance(r, Read)))


def drop_last_read(history: History) -> None:
    history.records.remove([r for r in history.records if isinstance(r, Read)][-1])


BROKEN: dict[str, tuple[str, Callable[[History], object]]] = {
    "an accepted task is lost": ("1: t was accepted", lambda h: h.stored.tasks.clear()),
    "a task never ends": ("1: t ended as leased", lambda h: change_task(h, state="leased")),
    "a task is doubled": ("1: k is in the store twice", double),
    "one key stands for two tasks": (
        "1: key k stands for",
        lambda h: h.add(Accepted(1.0, "k", "other")),
    ),
    "a task that nobody sent": ("1: t is in the store and", lambda h: change_task(h, key="?")),
    "a task leaves its final state": (
        "1: t was succeeded and then queued",
        lambda h: h.add(Seen(1.0, "k", "t", "queued", 2, None, False)),
    ),
    "a client is told another end": (
        "1: t was told to be failed",
        lambda h: change(h, Seen, -1, state="failed"),
    ),
    "another tenant's task": ("1: t is bob's", lambda h: change_task(h, tenant="bob")),
    "a fence is given twice": ("2: t is at fence 2", lambda h: change_attempt(h, 1, fence=1)),
    "an attempt never ends": ("2: an attempt", lambda h: change_attempt(h, 0, ended_at=None)),
    "two attempts succeed": (
        "2: t was worked on after",
        lambda h: change_attempt(h, 0, outcome="succeeded"),
    ),
    "two runners hold one lease": (
        "2: attempt 2 of t is r2's and r1's",
        lambda h: h.add(Seen(1.0, "other", "t", "leased", 2, "r1", False)),
    ),
    "an older attempt comes back": ("2: k saw", lambda h: change(h, Seen, -1, attempt=1)),
    "a chunk is read twice": ("3: k read chunk 1, 2 was next", repeat_chunk),
    "a chunk is missing": ("3: k read chunk 2, 1 was next", drop_read),
    "the last chunk never comes": ("3: k read 2 of 3 chunks", drop_last_read),
    "a journal has a gap": ("3: the journal", lambda h: h.stored.chunks.pop(1)),
    "a journal repeats a token": (
        "4: t says something else",
        lambda h: change_chunk(h, 1, token_ids=(0,)),
    ),
    "a reader gets another chunk": (
        "3: chunk 3 of t was read differently",
        lambda h: change(h, Read, -1, text="x"),
    ),
    "what was read is lost": ("4: t lost chunk 3", lambda h: h.stored.chunks.pop()),
    "half an answer succeeds": (
        "4: t succeeded with 2 of 3 tokens",
        lambda h: (h.stored.chunks.pop(), change_task(h, num_chunks=2)),
    ),
    "a task is cancelled by itself": (
        "4: t was cancelled, which",
        lambda h: change_task(h, state="cancelled"),
    ),
    "a task fails": ("4: t failed", lambda h: change_task(h, state="failed", error="why")),
    "scaling down cuts work off": (
        "6: demo__r0 was taken",
        lambda h: change(h, Unregistered, 0, num_running=2),
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_promise_is_found(what: str) -> None:
    words, breaks = BROKEN[what]
    history = kept()

    breaks(history)

    problems = judge(history, expected)
    assert any(problem.startswith(f"promise {words}") for problem in problems), problems


def test_a_task_may_be_cancelled_by_its_owner() -> None:
    history = kept()
    history.add(Cancelled(0.5, "t"))
    change_task(history, state="cancelled")
    change(history, Seen, -1, state="cancelled")
    change_attempt(history, 1, outcome="cancelled")

    assert judge(history, expected) == []


def test_what_was_answered_before_the_run_is_what_others_are_due() -> None:
    history = History(0.0)
    history.records = [
        Sent(-2.0, "reference", "ann", {"seed": 7, "max_new_tokens": 2}),
        Accepted(-1.9, "reference", "r"),
        Read(-1.5, "reference", "r", 1, (3,), "a"),
        Read(-1.4, "reference", "r", 2, (4,), "b"),
        Sent(1.0, "k", "ann", {"seed": 7, "max_new_tokens": 2}),
        Read(1.5, "k", "t", 1, (9,), "x"),
    ]

    assert answered_before(history)({"seed": 7, "max_new_tokens": 2}) == ((3, 4), "ab")
