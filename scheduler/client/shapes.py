"""The gateway's JSON documents, as types."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict


class Error(TypedDict):
    status: int
    message: str
    field: str


class Task(TypedDict):
    """A task without its input and output. Moments are seconds since the epoch, None: not yet."""

    task_id: str
    #: "queued", "leased", "succeeded", "failed", "cancelled" or "expired".
    state: str
    tenant: str
    model: str
    priority: int
    idempotency_key: str | None
    deadline_at: float | None
    estimated_cost: int
    charged_cost: int
    attempt: int
    runner: str | None
    replica: str | None
    num_chunks: int
    num_tokens: int
    accepted_at: float
    first_claimed_at: float | None
    first_chunk_at: float | None
    finished_at: float | None
    #: What a lost attempt is worth: "exact", "close" or "none".
    resume: str
    error: Error | None


class TaskOutcome(Task):
    """A task with its result, save for the text of a generation."""

    result: dict[str, Any] | None


class Attempt(TypedDict):
    number: int
    fence: int
    runner: str
    replica: str
    started_at: float
    num_tokens_before: int
    ended_at: float | None
    outcome: str
    reason: str


class Logprob(TypedDict):
    logprob: float
    #: Pairs of token id and log probability, most likely first.
    top: list[list[float]]


class Choice(TypedDict):
    """One of several answers."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: NotRequired[list[Logprob]]


class Output(TypedDict, total=False):
    """The answer, or ``choices`` alone when there are several."""

    text: str
    token_ids: list[int]
    #: When they were asked for.
    logprobs: list[Logprob]
    choices: list[Choice]


class TaskDetail(TaskOutcome):
    """All there is to tell about a task."""

    input: dict[str, Any]
    output: Output
    attempts: list[Attempt]


class TaskPage(TypedDict):
    tasks: list[Task]


class Replica(TypedDict):
    name: str
    model: str
    #: "unknown", "starting", "ready", "draining" or "failed".
    state: str
    capacity: int
    in_flight: int
    device_ids: list[int]
    detail: str
    #: What its engine tells of itself; None: nothing.
    engine: dict[str, Any] | None


class Placed(Replica):
    """A replica and where it is."""

    node: str
    connected: bool


class Model(TypedDict):
    name: str
    #: "generate", "embed" or "classify".
    task: str
    max_context: int
    num_stages: int
    desired_replicas: int
    queued: int
    replicas: list[Placed]


class ModelList(TypedDict):
    models: list[Model]


class Node(TypedDict):
    node: str
    runner_id: str
    connected: bool
    num_devices: int
    in_flight: int
    replicas: list[Replica]


class NodeList(TypedDict):
    nodes: list[Node]


class Tenant(TypedDict):
    tenant: str
    weight: float
    served_cost: dict[str, int]


class TenantList(TypedDict):
    tenants: list[Tenant]
