"""Reads what is left of a run on disk: the store, and what the model servers have written down."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from scheduler.testing.chaos.history import (
    Computed,
    Stored,
    StoredAttempt,
    StoredChunk,
    StoredTask,
    Unregistered,
)


def read_store(path: Path) -> Stored:
    """Everything in the store; nobody else may have it open."""
    with closing(sqlite3.connect(path)) as store:
        tasks = store.execute(
            "SELECT id, tenant, idempotency_key, state, fence, num_chunks,"
            " json_extract(error, '$.message') FROM tasks ORDER BY id"
        )
        attempts = store.execute(
            "SELECT task_id, fence, ended_at, outcome FROM attempts ORDER BY task_id, number"
        )
        chunks = store.execute(
            "SELECT task_id, seq, token_ids, text FROM journal ORDER BY task_id, seq"
        )
        return Stored(
            [StoredTask(*row) for row in tasks],
            [StoredAttempt(*row) for row in attempts],
            [StoredChunk(a, b, tuple(json.loads(c)), d) for a, b, c, d in chunks],
        )


def read_diary(path: Path, server: str, began: float) -> Iterator[Computed | Unregistered]:
    """What a model server has written down; ``began`` is when the run began."""
    if not path.exists():
        return
    for line in path.read_bytes().splitlines():
        note = json.loads(line)
        at = note["at"] - began
        if "replica" in note:
            yield Unregistered(at, server, note["replica"], note["num_running"])
        else:
            yield Computed(at, server, note["seed"], note["position"])
