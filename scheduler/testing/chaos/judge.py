"""Holds the promises of a Plait against the history of a run.

It knows nothing of the code that was run: only what clients were told, what was done to whom, and
what the store held at the end. What an undisturbed run answers is given, as a function of a task's
document. Each problem begins with the number of the promise that is broken.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

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

FINAL = frozenset({"succeeded", "failed", "cancelled", "expired"})
#: Tokens and text.
Answer = tuple[tuple[int, ...], str]
#: What an undisturbed run answers, by what was sent.
Expected = Callable[[Mapping[str, Any]], Answer]


def judge(history: History, expected: Expected) -> list[str]:
    """What is wrong with a run; nothing, if every promise was kept."""
    return [
        *_accepted_is_final(history.records, history.stored),
        *_one_lease(history.records, history.stored),
        *_read_without_gap(history.records),
        *_same_as_undisturbed(history.records, history.stored, expected),
        *_nobody_cut_off(history.records),
    ]


def answered_before(history: History) -> Expected:
    """What was answered before the run began, undisturbed, to whoever asks for the same."""
    seeds: dict[str, int] = {}
    answers: dict[int, Answer] = {}
    for record in history.records:
        if isinstance(record, Sent) and record.at < 0:
            seeds[record.key] = record.document["seed"]
            answers[record.document["seed"]] = (), ""
        elif isinstance(record, Read) and record.reader in seeds:
            tokens, text = answers[seeds[record.reader]]
            answers[seeds[record.reader]] = (*tokens, *record.token_ids), text + record.text
    return lambda document: answers[document["seed"]]


# ----------------------------------------------------------------------------------- promise 1


def _accepted_is_final(records: Sequence[Record], stored: Stored) -> Iterator[str]:
    sent = {r.key: r for r in records if isinstance(r, Sent)}
    tasks = {task.id: task for task in stored.tasks}
    accepted: dict[str, str] = {}
    for record in records:
        if isinstance(record, Accepted):
            known = accepted.setdefault(record.key, record.task_id)
            if known != record.task_id:
                yield f"promise 1: key {record.key} stands for {known} and {record.task_id}"
    for key, task_id in accepted.items():
        if (task := tasks.get(task_id)) is None:
            yield f"promise 1: {task_id} was accepted and is not in the store"
        elif task.state not in FINAL:
            yield f"promise 1: {task_id} ended as {task.state}, which is not final"
        elif (task.key, task.tenant) != (key, sent[key].tenant):
            yield f"promise 1: {task_id} is {task.tenant}'s {task.key}, and was accepted as {key}"
    yield from _doubled(stored.tasks)
    yield from _never_sent(stored.tasks, sent)
    yield from _ends(records, tasks)


def _doubled(tasks: Sequence[StoredTask]) -> Iterator[str]:
    by_key: dict[str | None, str] = {}
    for task in tasks:
        if (other := by_key.setdefault(task.key, task.id)) != task.id:
            yield f"promise 1: {task.key} is in the store twice, as {other} and {task.id}"


def _never_sent(tasks: Sequence[StoredTask], sent: Mapping[str, Sent]) -> Iterator[str]:
    for task in tasks:
        if task.key not in sent:
            yield f"promise 1: {task.id} is in the store and nobody has sent it"


def _ends(records: Sequence[Record], tasks: Mapping[str, StoredTask]) -> Iterator[str]:
    """No reader sees a task leave its final state, and all see the one in the store."""
    ended: dict[str, str] = {}
    for record in records:
        if not isinstance(record, Seen):
            continue
        if (before := ended.get(record.task_id)) is not None and record.state != before:
            yield f"promise 1: {record.task_id} was {before} and then {record.state}"
        if record.state in FINAL:
            ended[record.task_id] = record.state
    for task_id, state in ended.items():
        if task_id in tasks and tasks[task_id].state != state:
            yield f"promise 1: {task_id} was told to be {state}, and is {tasks[task_id].state}"


# ----------------------------------------------------------------------------------- promise 2


def _one_lease(records: Sequence[Record], stored: Stored) -> Iterator[str]:
    attempts: dict[str, list[StoredAttempt]] = defaultdict(list)
    for attempt in stored.attempts:
        attempts[attempt.task_id].append(attempt)
    for task in stored.tasks:
        yield from _attempts_of(task, attempts[task.id])
    yield from _seen_leases(records)


def _attempts_of(task: StoredTask, attempts: Sequence[StoredAttempt]) -> Iterator[str]:
    fences = [attempt.fence for attempt in attempts]
    if fences != list(range(1, task.fence + 1)):
        yield f"promise 2: {task.id} is at fence {task.fence}, its attempts had {fences}"
    if any(attempt.ended_at is None for attempt in attempts):
        yield f"promise 2: an attempt of {task.id} never ended"
    outcomes = [attempt.outcome for attempt in attempts]
    if any(outcome in FINAL for outcome in outcomes[:-1]):
        yield f"promise 2: {task.id} was worked on after its end: {outcomes}"
    if task.state == "succeeded" and outcomes[-1:] != ["succeeded"]:
        yield f"promise 2: {task.id} succeeded, its attempts were {outcomes}"


def _seen_leases(records: Sequence[Record]) -> Iterator[str]:
    """An attempt is one runner's, and a reader that was told of one hears of no earlier one."""
    newest: dict[str, int] = {}
    holders: dict[tuple[str, int], str] = {}
    for record in records:
        if not isinstance(record, Seen):
            continue
        if record.attempt < newest.get(record.reader, 0):
            yield f"promise 2: {record.reader} saw attempt {record.attempt} after a later one"
        newest[record.reader] = record.attempt
        if record.state == "leased" and record.runner is not None:
            key = record.task_id, record.attempt
            if (holder := holders.setdefault(key, record.runner)) != record.runner:
                yield f"promise 2: attempt {key[1]} of {key[0]} is {holder}'s and {record.runner}'s"


# ----------------------------------------------------------------------------------- promise 3


def _read_without_gap(records: Sequence[Record]) -> Iterator[str]:
    """Every reader gets chunk after chunk, over all its connections."""
    cursors: dict[str, int] = {}
    for record in records:
        if isinstance(record, Attached) and record.cursor != cursors.get(record.reader, 0):
            yield f"promise 3: {record.reader} lost its cursor {cursors.get(record.reader)}"
        if isinstance(record, Read):
            due = cursors.get(record.reader, 0) + 1
            if record.cursor != due:
                yield f"promise 3: {record.reader} read chunk {record.cursor}, {due} was next"
            cursors[record.reader] = record.cursor


# ----------------------------------------------------------------------------------- promise 4


def _same_as_undisturbed(
    records: Sequence[Record], stored: Stored, expected: Expected
) -> Iterator[str]:
    documents = {record.key: record.document for record in records if isinstance(record, Sent)}
    cancelled = {record.task_id for record in records if isinstance(record, Cancelled)}
    journals: dict[str, list[StoredChunk]] = defaultdict(list)
    for chunk in stored.chunks:
        journals[chunk.task_id].append(chunk)
    for task in stored.tasks:
        if task.key not in documents:
            continue
        if task.state == "cancelled" and task.id not in cancelled:
            yield f"promise 4: {task.id} was cancelled, which nobody asked for"
        elif task.state in ("failed", "expired"):
            yield f"promise 4: {task.id} {task.state}: {task.error}"
        yield from _journal(task, journals[task.id], expected(documents[task.key]))
    yield from _read_as_stored(records, journals)


def _journal(task: StoredTask, chunks: Sequence[StoredChunk], due: Answer) -> Iterator[str]:
    if [chunk.seq for chunk in chunks] != list(range(task.num_chunks)):
        seqs = [chunk.seq for chunk in chunks]
        yield f"promise 3: the journal of {task.id} has chunks {seqs}, not {task.num_chunks}"
    tokens = tuple(token for chunk in chunks for token in chunk.token_ids)
    text = "".join(chunk.text for chunk in chunks)
    if tokens != due[0][: len(tokens)] or not due[1].startswith(text):
        yield f"promise 4: {task.id} says something else than an undisturbed run"
    elif task.state == "succeeded" and (tokens, text) != due:
        yield f"promise 4: {task.id} succeeded with {len(tokens)} of {len(due[0])} tokens"


def _read_as_stored(
    records: Sequence[Record], journals: Mapping[str, Sequence[StoredChunk]]
) -> Iterator[str]:
    """What was read is what the store holds, and whoever saw the end has read all of it."""
    num_read: dict[str, int] = defaultdict(int)
    for record in records:
        if isinstance(record, Read):
            num_read[record.reader] = record.cursor
            journal = journals.get(record.task_id, ())
            if record.cursor > len(journal):
                yield f"promise 4: {record.task_id} lost chunk {record.cursor}, which was read"
                continue
            chunk = journal[record.cursor - 1]
            if (chunk.token_ids, chunk.text) != (record.token_ids, record.text):
                yield f"promise 3: chunk {record.cursor} of {record.task_id} was read differently"
        elif isinstance(record, Seen) and record.is_end:
            total = len(journals.get(record.task_id, ()))
            if num_read[record.reader] != total:
                yield f"promise 3: {record.reader} read {num_read[record.reader]} of {total} chunks"


# ----------------------------------------------------------------------------------- promise 6


def _nobody_cut_off(records: Sequence[Record]) -> Iterator[str]:
    for record in records:
        if isinstance(record, Unregistered) and record.num_running:
            yield (
                f"promise 6: {record.replica} was taken from {record.server} with"
                f" {record.num_running} requests in flight"
            )
