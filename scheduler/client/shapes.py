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


class Device(TypedDict):
    index: int
    kind: str
    #: From 0 to 1; None: it does not tell.
    busy_ratio: float | None
    memory_used_bytes: int
    memory_total_bytes: int


class TorchServe(TypedDict):
    #: "unknown", "starting", "ready" or "gone".
    state: str
    num_restarts: int
    detail: str


class NodeState(TypedDict):
    """How a node is doing, as its runner last said."""

    devices: list[Device]
    cpu_ratio: float
    memory_used_bytes: int
    memory_total_bytes: int
    torchserve: TorchServe
    num_active: int


class Node(TypedDict):
    node: str
    runner_id: str
    connected: bool
    num_devices: int
    device_kind: str
    host: str
    provider: str
    container: str
    version: str
    #: Models it has a config of; None: it did not say.
    models: list[str] | None
    #: Grows with each stream that its runner opens.
    fence: int
    control_plane: str
    connected_at: float
    heard_at: float
    in_flight: int
    capacity: int
    replicas: list[Replica]
    state: NodeState


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
    #: "tenant", "operator" or "node".
    role: str
    name: str
    created_at: float
    revoked_at: float | None
    #: None: it does not run out.
    expires_at: float | None


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


class Shortage(TypedDict):
    #: "paused", "delayed", "no_replica_desired", "no_replica_ready", "tenant_in_flight",
    #: "slots_busy", "own_tasks", "other_tenants" or "other_classes".
    code: str
    message: str


class Ahead(TypedDict):
    num_tasks: int
    cost: int
    num_flows: int
    is_at_least: bool


class AheadByPlace(TypedDict):
    own: Ahead
    other_tenants: Ahead
    classes: dict[str, Ahead]


class Basis(TypedDict):
    num_tasks_ahead: int
    cost_ahead: int
    is_at_least: bool
    num_slots: int
    num_free: int
    cost_per_s: float | None
    measured_s: float
    was_full: bool
    used_ratio: float
    start_s: float | None
    num_starts: int
    start_kind: str


class AttemptStory(TypedDict):
    number: int
    runner: str
    replica: str
    outcome: str
    reason: str
    started_at: float
    waited_s: float
    duration_s: float
    num_tokens: int


class Explanation(TypedDict):
    """Why a task waits and until when, or the story of its attempts."""

    task_id: str
    state: str
    message: str
    short: list[Shortage]
    position: int | None
    ahead: AheadByPlace | None
    estimated_start_at: float | None
    why_unknown: str
    basis: Basis | None
    attempts: list[AttemptStory]
    waited_s: float
    worked_s: float


class ScaleMeasure(TypedDict):
    """What replicas of a model were measured to do on one kind of device."""

    device_kind: str
    cost_per_slot: float | None
    was_full: bool
    first_chunk_s: float | None
    used_ratio: float | None
    start_s: float | None
    num_starts: int


class ScaleDecision(TypedDict):
    """One decision, or several in a row that came to the same."""

    number: int
    decided_at: float
    last_at: float
    num_times: int
    #: "up", "down" or "nothing".
    action: str
    num_before: int
    num_after: int
    reason: str
    message: str
    inputs: dict[str, Any]


class ScaleStory(TypedDict):
    """How many replicas of a model should run, and how it came about."""

    model: str
    desired_replicas: int
    #: "operator", "work" or "config".
    decided_by: str
    #: None: the number is fixed.
    rule: dict[str, Any] | None
    measures: list[ScaleMeasure]
    #: Newest first.
    decisions: list[ScaleDecision]


class Bulk(_InClass):
    """A bulk; ``num_ended`` and ``counts`` are there when it was asked for by its id."""

    bulk_id: str
    #: "open" while inputs may come, then "closed", or "cancelled".
    state: str
    tenant: str
    model: str
    name: str
    idempotency_key: str | None
    num_inputs: int
    created_at: float
    closed_at: float | None
    cancelled_at: float | None
    num_ended: NotRequired[int]
    #: Inputs by state.
    counts: NotRequired[dict[str, int]]


class BulkPage(TypedDict):
    bulks: list[Bulk]


class InputOutcome(TypedDict):
    """What became of one input."""

    index: int
    #: None: it has been purged.
    task_id: str | None
    state: str
    result: NotRequired[dict[str, Any]]
    error: NotRequired[Error]


class Drift(TypedDict):
    """Something that is not as it should be, and nobody but a person can put right."""

    subject: str
    problem: str


class Check(TypedDict):
    """A check of what may drift, and what it has come to."""

    name: str
    looks_at: str
    repair: str
    every_s: float
    num_looks: int
    num_found: int
    num_repaired: int
    num_failed: int
    looked_at: float | None
    open: list[Drift]


class CheckList(TypedDict):
    checks: list[Check]


class ProviderNote(TypedDict):
    """What was noted of a provider's containers of one class; everything fades with time."""

    node_class: str
    losses: float
    stalls: float
    slow_starts: float
    #: Hours that containers were up.
    hours: float
    noted_at: float
    losses_per_hour: float


class Provider(TypedDict):
    """Who rents us containers."""

    name: str
    kind: str
    #: "ok", "paused" or "unseen".
    state: str
    reason: str
    price_per_hour: float
    device_kind: str
    num_devices: int
    min_containers: int
    max_containers: int
    #: None: any.
    models: list[str] | None
    labels: dict[str, str]
    removes_any: bool
    num_ordered: int
    num_up: int
    ledger: list[ProviderNote]


class ProviderList(TypedDict):
    providers: list[Provider]
    #: Why more containers are wanted than can be had, by model.
    shortages: dict[str, str]


class Container(TypedDict):
    """A container that was ordered."""

    provider: str
    key: str
    #: "ordered", "up", "leaving" or "removing".
    state: str
    reason: str
    #: The provider's name for it; None: not seen yet.
    container: str | None
    node_class: str
    ordered_at: float
    up_at: float | None
    leaving_at: float | None
    stalled_at: float | None
    provider_state: str
    provider_reason: str
    runner: str | None


class UnknownContainer(TypedDict):
    """A container that nobody ordered."""

    provider: str
    container: str


class ContainerList(TypedDict):
    containers: list[Container]
    unknown: list[UnknownContainer]
