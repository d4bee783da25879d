"""The gateway's JSON documents, as types."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict


class Error(TypedDict):
    status: int
    message: str
    field: str


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


#: Its name is a keyword, so it cannot stand in a class.
_InClass = TypedDict("_InClass", {"class": str})


class Task(_InClass):
    """A task without its input and output. Moments are seconds since the epoch, None: not yet."""

    task_id: str
    #: "queued", "delayed", "leased", "paused", "succeeded", "failed", "cancelled" or "expired".
    state: str
    tenant: str
    model: str
    priority: int
    idempotency_key: str | None
    deadline_at: float | None
    estimated_cost: int
    charged_cost: int
    attempt: int
    num_lost: int
    runner: str | None
    replica: str | None
    num_chunks: int
    num_tokens: int
    accepted_at: float
    not_before: float | None
    first_claimed_at: float | None
    first_chunk_at: float | None
    finished_at: float | None
    #: What a lost attempt is worth: "exact", "close" or "none".
    resume: str
    is_dead: bool
    bulk_id: str | None
    bulk_index: int | None
    error: Error | None
    #: In the events of a task that waits after it had been worked on.
    last_attempt: NotRequired[Attempt]


class TaskOutcome(Task):
    """A task with its result, save for the text of a generation."""

    result: dict[str, Any] | None


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
    """A tenant; a limit that is None is none."""

    tenant: str
    weight: float
    max_queued: int | None
    max_in_flight: int | None
    cost_per_minute: int | None
    classes: list[str] | None
    queued: int
    in_flight: int
    served_cost: dict[str, int]


class TenantList(TypedDict):
    tenants: list[Tenant]


class Key(TypedDict):
    key_id: str
    tenant: str
    #: "tenant" or "operator".
    role: str
    name: str
    created_at: float
    revoked_at: float | None


class NewKey(Key):
    #: How it is written; told this once.
    key: str


class KeyList(TypedDict):
    keys: list[Key]


class PriorityClass(_InClass):
    weight: float


class ClassList(TypedDict):
    classes: list[PriorityClass]


class CostFactor(TypedDict):
    model: str
    device_kind: str
    factor: float


class CostFactorList(TypedDict):
    cost_factors: list[CostFactor]
