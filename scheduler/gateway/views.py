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
from handlers.wire import logprob_document
from scheduler import records
from scheduler.bulk import Bulk
from scheduler.bulk_book import InputOutcome, Progress
from scheduler.cluster_view import NodeView
from scheduler.explanation import Explanation
from scheduler.keys import Key
from scheduler.operations import TenantView
from scheduler.scaling import ScaleDecision, ScaleStory
from scheduler.task import Attempt, JournalChunk, Task, TaskEvent, TaskState

#: Fields of a task that a client sees as they are.
SUMMARY_FIELDS = (
    "tenant",
    "model",
    "class",
    "priority",
    "idempotency_key",
    "deadline_at",
    "estimated_cost",
    "charged_cost",
    "attempt",
    "num_lost",
    "runner",
    "replica",
    "num_chunks",
    "num_tokens",
    "accepted_at",
    "not_before",
    "first_claimed_at",
    "first_chunk_at",
    "finished_at",
    "resume",
    "is_dead",
    "bulk_id",
    "bulk_index",
)

#: Those of another name in the code, where this one is a keyword.
_ATTRIBUTES = {"class": "priority_class"}


def summary(task: Task) -> dict[str, Any]:
    """A task without its input and output."""
    fields = {name: getattr(task, _ATTRIBUTES.get(name, name)) for name in SUMMARY_FIELDS}
    error = None if task.error is None else records.asdict(task.error)
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
        "output": output(chunks, task.num_answers),
        "attempts": [records.asdict(attempt) for attempt in attempts],
    }


def output(chunks: Sequence[JournalChunk], num_answers: int = 1) -> dict[str, Any]:
    """Everything a journal holds, joined; several answers stand side by side."""
    if num_answers == 1:
        return _joined(chunks)
    answers: list[list[JournalChunk]] = [[] for _ in range(num_answers)]
    for each in chunks:
        answers[each.index].append(each)
    return {"choices": [{"index": i, **_joined(own)} for i, own in enumerate(answers)]}


def _joined(chunks: Sequence[JournalChunk]) -> dict[str, Any]:
    whole: dict[str, Any] = {
        "text": "".join(chunk.text for chunk in chunks),
        "token_ids": [token for chunk in chunks for token in chunk.token_ids],
    }
    if logprobs := [logprob_document(each) for chunk in chunks for each in chunk.logprobs]:
        whole["logprobs"] = logprobs
    return whole


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
    if "finish_reasons" in given:
        return {"finish_reasons": list(given["finish_reasons"]), "usage": usage}
    return {"finish_reason": given["finish_reason"], "usage": usage}


def answer(task: Task, chunks: Sequence[JournalChunk], kind: str) -> dict[str, Any]:
    """The answer to a prediction whose client waited for it."""
    head = {"task_id": task.id, "model": task.model}
    if kind == "generate":
        whole = {**head, **output(chunks, task.num_answers), **(result(task) or {})}
        if task.num_answers > 1:
            reasons = whole.pop("finish_reasons", [])
            for choice, reason in zip(whole["choices"], reasons, strict=False):
                choice["finish_reason"] = reason
        return whole
    return {**head, **(result(task) or {})}


def chunk(entry: JournalChunk) -> dict[str, Any]:
    """A piece of output; the first answer's number and what was not asked for are left out."""
    document = {"seq": entry.seq, "token_ids": list(entry.token_ids), "text": entry.text}
    if entry.index:
        document["index"] = entry.index
    if entry.logprobs:
        document["logprobs"] = [logprob_document(each) for each in entry.logprobs]
    return document


def state(event: TaskEvent, ended: Attempt | None = None) -> dict[str, Any]:
    """What an event that is no chunk tells; ``ended`` is the attempt after which the task waits."""
    if event.task is None:
        return {}
    if event.kind == "end":
        return outcome(event.task)
    document = summary(event.task)
    return document if ended is None else {**document, "last_attempt": records.asdict(ended)}


def server_sent(event: TaskEvent, ended: Attempt | None = None) -> bytes:
    """An event in the notation of server-sent events; its id is the cursor to come back with."""
    document = state(event, ended) if event.chunk is None else chunk(event.chunk)
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


def scale(config: ModelConfig, story: ScaleStory) -> dict[str, Any]:
    """How many replicas of a model should run, who says so, and how it came about."""
    measures = [
        {
            "device_kind": each.device_kind,
            "cost_per_slot": each.cost_per_slot,
            "was_full": each.was_full,
            "first_chunk_s": each.first_chunk_s,
            "used_ratio": each.used_ratio,
            "start_s": each.start_s,
            "num_starts": len(each.start_times_s),
        }
        for each in story.measures
    ]
    return {
        "model": config.name,
        "desired_replicas": story.wishes.of(config),
        "decided_by": story.wishes.by(config),
        "rule": None if config.scale is None else asdict(config.scale),
        "measures": measures,
        "decisions": [decision(each) for each in story.decisions],
    }


def decision(given: ScaleDecision) -> dict[str, Any]:
    """One decision on a model's replicas; its model is known."""
    return {name: value for name, value in records.asdict(given).items() if name != "model"}


def key(given: Key) -> dict[str, Any]:
    """A key without what opens: neither its secret, which nobody has, nor the secret's hash."""
    return {
        "key_id": given.id,
        "tenant": given.tenant,
        "role": given.role.value,
        "name": given.name,
        "created_at": given.created_at,
        "revoked_at": given.revoked_at,
        "expires_at": given.expires_at,
    }


def tenant(view: TenantView) -> dict[str, Any]:
    """A tenant with its quotas, what it has waiting and in flight, and what it was served."""
    served: dict[str, int] = {}
    for flow in view.flows:
        served[flow.model] = served.get(flow.model, 0) + flow.charged_cost
    return {
        "tenant": view.tenant.name,
        "weight": view.tenant.weight_permille / 1000,
        "max_queued": view.tenant.max_queued,
        "max_in_flight": view.tenant.max_in_flight,
        "cost_per_minute": view.tenant.cost_per_minute,
        "classes": view.tenant.classes,
        "queued": sum(flow.num_queued for flow in view.flows),
        "in_flight": sum(flow.num_leased for flow in view.flows),
        "served_cost": served,
    }


def node(given: NodeView) -> dict[str, Any]:
    """A node with its replicas."""
    return {
        **asdict(given),
        "in_flight": sum(replica.in_flight for replica in given.replicas),
        "capacity": sum(replica.capacity for replica in given.replicas),
    }


def to_json(document: Mapping[str, Any]) -> str:
    """JSON on one line."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def bulk(given: Bulk) -> dict[str, Any]:
    """A bulk without its progress."""
    is_cancelled = given.cancelled_at is not None
    state = "cancelled" if is_cancelled else "open" if given.closed_at is None else "closed"
    fields = records.asdict(given)
    fields["class"] = fields.pop("priority_class")
    return {"bulk_id": fields.pop("id"), "state": state, **fields}


def progress(given: Progress) -> dict[str, Any]:
    """A bulk with its inputs counted."""
    counts = {state.value: count for state, count in given.counts.items()}
    return {**bulk(given.bulk), "num_ended": given.num_ended, "counts": counts}


def input_outcome(given: InputOutcome, kind: str) -> dict[str, Any]:
    """What became of one input; one whose task was purged has no more than its place."""
    task = given.task
    if task is None:
        return {"index": given.index, "task_id": None, "state": "purged"}
    document: dict[str, Any] = {"index": given.index, "task_id": task.id, "state": task.state.value}
    if task.state is TaskState.SUCCEEDED:
        whole = answer(task, given.chunks, kind)
        document["result"] = {n: v for n, v in whole.items() if n not in ("task_id", "model")}
    if task.error is not None:
        document["error"] = records.asdict(task.error)
    return document


def explanation(given: Explanation) -> dict[str, Any]:
    """Why a task waits and until when, or the story of its attempts."""
    document = asdict(given)
    outlook = document.pop("outlook")
    document["ahead"] = outlook and {
        "own": outlook["flow"], "other_tenants": outlook["others"], "classes": outlook["classes"],
    }  # fmt: skip
    return document
