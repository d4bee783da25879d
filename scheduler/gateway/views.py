"""How tasks, chunks and the cluster look to a client, whatever protocol carries them.

A *summary* of a task has neither its input nor its output; the *detail* has both, and its attempts.
Moments are seconds since the epoch. The result of a generation says why it ended and how long it
is; its text lives in the journal and is put beside it here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from handlers.model_config import ModelConfig
from scheduler.cluster_view import NodeView
from scheduler.task import Attempt, JournalChunk, Task, TaskEvent

#: Fields of a task that a client sees as they are.
SUMMARY_FIELDS = (
    "tenant",
    "model",
    "priority",
    "idempotency_key",
    "deadline_at",
    "estimated_cost",
    "charged_cost",
    "attempt",
    "runner",
    "replica",
    "num_chunks",
    "num_tokens",
    "accepted_at",
    "first_claimed_at",
    "first_chunk_at",
    "finished_at",
)


def summary(task: Task) -> dict[str, Any]:
    """A task without its input and output."""
    fields = {name: getattr(task, name) for name in SUMMARY_FIELDS}
    error = None if task.error is None else asdict(task.error)
    return {"task_id": task.id, "state": task.state.value, **fields, "error": error}


def outcome(task: Task) -> dict[str, Any]:
    """A task with its result as far as it is not text: what ends a stream of chunks."""
    return {**summary(task), "result": result(task)}


def detail(
    task: Task, attempts: Iterable[Attempt], chunks: Sequence[JournalChunk]
) -> dict[str, Any]:
    """All there is to tell about a task."""
    return {
        **outcome(task),
        "input": dict(task.document),
        "output": output(chunks),
        "attempts": [asdict(attempt) for attempt in attempts],
    }


def output(chunks: Sequence[JournalChunk]) -> dict[str, Any]:
    """Everything a journal holds, joined."""
    return {
        "text": "".join(chunk.text for chunk in chunks),
        "token_ids": [token for chunk in chunks for token in chunk.token_ids],
    }


def result(task: Task) -> dict[str, Any] | None:
    """The result as clients see it; None without one."""
    if task.result is None:
        return None
    return finish(task.result) if "finish_reason" in task.result else dict(task.result)


def finish(given: Mapping[str, Any]) -> dict[str, Any]:
    """The end of a generation, from what its runner reported."""
    usage = {
        "prompt_tokens": given["num_prompt_tokens"],
        "output_tokens": given["num_output_tokens"],
    }
    return {"finish_reason": given["finish_reason"], "usage": usage}


def answer(task: Task, chunks: Sequence[JournalChunk], kind: str) -> dict[str, Any]:
    """The answer to a prediction whose client waited for it."""
    head = {"task_id": task.id, "model": task.model}
    if kind == "generate":
        return {**head, **output(chunks), **(result(task) or {})}
    return {**head, **(result(task) or {})}


def chunk(entry: JournalChunk) -> dict[str, Any]:
    return {"seq": entry.seq, "token_ids": list(entry.token_ids), "text": entry.text}


def server_sent(event: TaskEvent) -> bytes:
    """An event in the notation of server-sent events; its id is the cursor to come back with."""
    if event.chunk is not None:
        document = chunk(event.chunk)
    elif event.task is not None:
        document = outcome(event.task) if event.kind == "end" else summary(event.task)
    else:
        document = {}
    return server_sent_frame(document, kind=event.kind, cursor=event.cursor)


def server_sent_frame(document: Mapping[str, Any], *, kind: str, cursor: int) -> bytes:
    return f"id: {cursor}\nevent: {kind}\ndata: {to_json(document)}\n\n".encode()


def model(
    config: ModelConfig, num_desired: int, queued: int, nodes: Iterable[NodeView]
) -> dict[str, Any]:
    """A model with the replicas it has."""
    replicas = [
        {**asdict(replica), "node": node.node, "connected": node.connected}
        for node in nodes
        for replica in node.replicas
        if replica.model == config.name
    ]
    return {
        "name": config.name,
        "task": config.task,
        "max_context": config.max_context,
        "num_stages": config.num_stages,
        "desired_replicas": num_desired,
        "queued": queued,
        "replicas": replicas,
    }


def node(given: NodeView) -> dict[str, Any]:
    """A node with its replicas."""
    return {**asdict(given), "in_flight": sum(replica.in_flight for replica in given.replicas)}


def to_json(document: Mapping[str, Any]) -> str:
    """JSON on one line."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))
