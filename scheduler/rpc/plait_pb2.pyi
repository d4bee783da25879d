from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RunnerMessage(_message.Message):
    __slots__ = ("hello", "heartbeat", "progress", "finish", "release")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    heartbeat: Heartbeat
    progress: Progress
    finish: Finish
    release: Release
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., finish: _Optional[_Union[Finish, _Mapping]] = ..., release: _Optional[_Union[Release, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("runner_id", "session_id", "node", "protocol", "num_devices", "device_kind", "held", "replicas", "provider", "container", "host", "version", "models", "state", "holdings")
    RUNNER_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    NUM_DEVICES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_KIND_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    HOLDINGS_FIELD_NUMBER: _ClassVar[int]
    runner_id: str
    session_id: str
    node: str
    protocol: int
    num_devices: int
    device_kind: str
    held: _containers.RepeatedCompositeFieldContainer[HeldLease]
    replicas: _containers.RepeatedCompositeFieldContainer[Replica]
    provider: str
    container: str
    host: str
    version: str
    models: _containers.RepeatedScalarFieldContainer[str]
    state: NodeState
    holdings: _containers.RepeatedCompositeFieldContainer[Holding]
    def __init__(self, runner_id: _Optional[str] = ..., session_id: _Optional[str] = ..., node: _Optional[str] = ..., protocol: _Optional[int] = ..., num_devices: _Optional[int] = ..., device_kind: _Optional[str] = ..., held: _Optional[_Iterable[_Union[HeldLease, _Mapping]]] = ..., replicas: _Optional[_Iterable[_Union[Replica, _Mapping]]] = ..., provider: _Optional[str] = ..., container: _Optional[str] = ..., host: _Optional[str] = ..., version: _Optional[str] = ..., models: _Optional[_Iterable[str]] = ..., state: _Optional[_Union[NodeState, _Mapping]] = ..., holdings: _Optional[_Iterable[_Union[Holding, _Mapping]]] = ...) -> None: ...

class NodeState(_message.Message):
    __slots__ = ("devices", "cpu_ratio", "memory_used_bytes", "memory_total_bytes", "torchserve", "num_active")
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    CPU_RATIO_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    TORCHSERVE_FIELD_NUMBER: _ClassVar[int]
    NUM_ACTIVE_FIELD_NUMBER: _ClassVar[int]
    devices: _containers.RepeatedCompositeFieldContainer[Device]
    cpu_ratio: float
    memory_used_bytes: int
    memory_total_bytes: int
    torchserve: TorchServe
    num_active: int
    def __init__(self, devices: _Optional[_Iterable[_Union[Device, _Mapping]]] = ..., cpu_ratio: _Optional[float] = ..., memory_used_bytes: _Optional[int] = ..., memory_total_bytes: _Optional[int] = ..., torchserve: _Optional[_Union[TorchServe, _Mapping]] = ..., num_active: _Optional[int] = ...) -> None: ...

class Device(_message.Message):
    __slots__ = ("index", "kind", "busy_ratio", "memory_used_bytes", "memory_total_bytes")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    BUSY_RATIO_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    index: int
    kind: str
    busy_ratio: float
    memory_used_bytes: int
    memory_total_bytes: int
    def __init__(self, index: _Optional[int] = ..., kind: _Optional[str] = ..., busy_ratio: _Optional[float] = ..., memory_used_bytes: _Optional[int] = ..., memory_total_bytes: _Optional[int] = ...) -> None: ...

class TorchServe(_message.Message):
    __slots__ = ("state", "num_restarts", "detail")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNKNOWN: _ClassVar[TorchServe.State]
        STARTING: _ClassVar[TorchServe.State]
        READY: _ClassVar[TorchServe.State]
        GONE: _ClassVar[TorchServe.State]
    UNKNOWN: TorchServe.State
    STARTING: TorchServe.State
    READY: TorchServe.State
    GONE: TorchServe.State
    STATE_FIELD_NUMBER: _ClassVar[int]
    NUM_RESTARTS_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    state: TorchServe.State
    num_restarts: int
    detail: str
    def __init__(self, state: _Optional[_Union[TorchServe.State, str]] = ..., num_restarts: _Optional[int] = ..., detail: _Optional[str] = ...) -> None: ...

class Holding(_message.Message):
    __slots__ = ("model", "state", "held_bytes", "total_bytes", "bytes_per_s", "detail")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNKNOWN: _ClassVar[Holding.State]
        ABSENT: _ClassVar[Holding.State]
        FETCHING: _ClassVar[Holding.State]
        HELD: _ClassVar[Holding.State]
        FAILED: _ClassVar[Holding.State]
    UNKNOWN: Holding.State
    ABSENT: Holding.State
    FETCHING: Holding.State
    HELD: Holding.State
    FAILED: Holding.State
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    HELD_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    model: str
    state: Holding.State
    held_bytes: int
    total_bytes: int
    bytes_per_s: float
    detail: str
    def __init__(self, model: _Optional[str] = ..., state: _Optional[_Union[Holding.State, str]] = ..., held_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ..., bytes_per_s: _Optional[float] = ..., detail: _Optional[str] = ...) -> None: ...

class HeldLease(_message.Message):
    __slots__ = ("task_id", "fence")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    fence: int
    def __init__(self, task_id: _Optional[str] = ..., fence: _Optional[int] = ...) -> None: ...

class Replica(_message.Message):
    __slots__ = ("name", "model", "state", "capacity", "in_flight", "device_ids", "detail", "engine_json")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNKNOWN: _ClassVar[Replica.State]
        STARTING: _ClassVar[Replica.State]
        READY: _ClassVar[Replica.State]
        DRAINING: _ClassVar[Replica.State]
        FAILED: _ClassVar[Replica.State]
    UNKNOWN: Replica.State
    STARTING: Replica.State
    READY: Replica.State
    DRAINING: Replica.State
    FAILED: Replica.State
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    DEVICE_IDS_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    ENGINE_JSON_FIELD_NUMBER: _ClassVar[int]
    name: str
    model: str
    state: Replica.State
    capacity: int
    in_flight: int
    device_ids: _containers.RepeatedScalarFieldContainer[int]
    detail: str
    engine_json: str
    def __init__(self, name: _Optional[str] = ..., model: _Optional[str] = ..., state: _Optional[_Union[Replica.State, str]] = ..., capacity: _Optional[int] = ..., in_flight: _Optional[int] = ..., device_ids: _Optional[_Iterable[int]] = ..., detail: _Optional[str] = ..., engine_json: _Optional[str] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("held", "replicas", "sent_at", "state", "holdings")
    HELD_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    SENT_AT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    HOLDINGS_FIELD_NUMBER: _ClassVar[int]
    held: _containers.RepeatedCompositeFieldContainer[HeldLease]
    replicas: _containers.RepeatedCompositeFieldContainer[Replica]
    sent_at: float
    state: NodeState
    holdings: _containers.RepeatedCompositeFieldContainer[Holding]
    def __init__(self, held: _Optional[_Iterable[_Union[HeldLease, _Mapping]]] = ..., replicas: _Optional[_Iterable[_Union[Replica, _Mapping]]] = ..., sent_at: _Optional[float] = ..., state: _Optional[_Union[NodeState, _Mapping]] = ..., holdings: _Optional[_Iterable[_Union[Holding, _Mapping]]] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("task_id", "fence", "seq", "token_ids", "text", "index", "logprobs")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    fence: int
    seq: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    text: str
    index: int
    logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprob]
    def __init__(self, task_id: _Optional[str] = ..., fence: _Optional[int] = ..., seq: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., text: _Optional[str] = ..., index: _Optional[int] = ..., logprobs: _Optional[_Iterable[_Union[TokenLogprob, _Mapping]]] = ...) -> None: ...

class TokenLogprob(_message.Message):
    __slots__ = ("logprob", "top_token_ids", "top_logprobs")
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    logprob: float
    top_token_ids: _containers.RepeatedScalarFieldContainer[int]
    top_logprobs: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, logprob: _Optional[float] = ..., top_token_ids: _Optional[_Iterable[int]] = ..., top_logprobs: _Optional[_Iterable[float]] = ...) -> None: ...

class Finish(_message.Message):
    __slots__ = ("task_id", "fence", "result_json", "error")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    RESULT_JSON_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    fence: int
    result_json: str
    error: Error
    def __init__(self, task_id: _Optional[str] = ..., fence: _Optional[int] = ..., result_json: _Optional[str] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class Release(_message.Message):
    __slots__ = ("task_id", "fence", "reason")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    fence: int
    reason: str
    def __init__(self, task_id: _Optional[str] = ..., fence: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("status", "message", "field")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    status: int
    message: str
    field: str
    def __init__(self, status: _Optional[int] = ..., message: _Optional[str] = ..., field: _Optional[str] = ...) -> None: ...

class ControlMessage(_message.Message):
    __slots__ = ("welcome", "grant", "cancel", "ack", "desired_replicas")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    DESIRED_REPLICAS_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    grant: Grant
    cancel: Cancel
    ack: Ack
    desired_replicas: DesiredReplicas
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., grant: _Optional[_Union[Grant, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ..., ack: _Optional[_Union[Ack, _Mapping]] = ..., desired_replicas: _Optional[_Union[DesiredReplicas, _Mapping]] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("lease_ttl_s", "heartbeat_s", "kept")
    LEASE_TTL_S_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_S_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    lease_ttl_s: float
    heartbeat_s: float
    kept: _containers.RepeatedCompositeFieldContainer[Ack]
    def __init__(self, lease_ttl_s: _Optional[float] = ..., heartbeat_s: _Optional[float] = ..., kept: _Optional[_Iterable[_Union[Ack, _Mapping]]] = ...) -> None: ...

class Grant(_message.Message):
    __slots__ = ("task_id", "fence", "attempt", "model", "replica", "document_json", "generated", "next_seq", "other_generated", "journal_interval_s")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_JSON_FIELD_NUMBER: _ClassVar[int]
    GENERATED_FIELD_NUMBER: _ClassVar[int]
    NEXT_SEQ_FIELD_NUMBER: _ClassVar[int]
    OTHER_GENERATED_FIELD_NUMBER: _ClassVar[int]
    JOURNAL_INTERVAL_S_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    fence: int
    attempt: int
    model: str
    replica: str
    document_json: str
    generated: _containers.RepeatedScalarFieldContainer[int]
    next_seq: int
    other_generated: _containers.RepeatedCompositeFieldContainer[TokenIds]
    journal_interval_s: float
    def __init__(self, task_id: _Optional[str] = ..., fence: _Optional[int] = ..., attempt: _Optional[int] = ..., model: _Optional[str] = ..., replica: _Optional[str] = ..., document_json: _Optional[str] = ..., generated: _Optional[_Iterable[int]] = ..., next_seq: _Optional[int] = ..., other_generated: _Optional[_Iterable[_Union[TokenIds, _Mapping]]] = ..., journal_interval_s: _Optional[float] = ...) -> None: ...

class TokenIds(_message.Message):
    __slots__ = ("token_ids",)
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("task_id", "fence", "reason")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    fence: int
    reason: str
    def __init__(self, task_id: _Optional[str] = ..., fence: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("task_id", "fence", "next_seq", "is_final")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    NEXT_SEQ_FIELD_NUMBER: _ClassVar[int]
    IS_FINAL_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    fence: int
    next_seq: int
    is_final: bool
    def __init__(self, task_id: _Optional[str] = ..., fence: _Optional[int] = ..., next_seq: _Optional[int] = ..., is_final: _Optional[bool] = ...) -> None: ...

class DesiredReplicas(_message.Message):
    __slots__ = ("replicas",)
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    replicas: _containers.RepeatedCompositeFieldContainer[DesiredReplica]
    def __init__(self, replicas: _Optional[_Iterable[_Union[DesiredReplica, _Mapping]]] = ...) -> None: ...

class DesiredReplica(_message.Message):
    __slots__ = ("name", "model", "device_ids")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DEVICE_IDS_FIELD_NUMBER: _ClassVar[int]
    name: str
    model: str
    device_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., model: _Optional[str] = ..., device_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class SubmitRequest(_message.Message):
    __slots__ = ("model", "input_json", "tenant", "priority_class", "priority", "deadline_s", "idempotency_key")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    INPUT_JSON_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_CLASS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    model: str
    input_json: str
    tenant: str
    priority_class: str
    priority: int
    deadline_s: float
    idempotency_key: str
    def __init__(self, model: _Optional[str] = ..., input_json: _Optional[str] = ..., tenant: _Optional[str] = ..., priority_class: _Optional[str] = ..., priority: _Optional[int] = ..., deadline_s: _Optional[float] = ..., idempotency_key: _Optional[str] = ...) -> None: ...

class TaskRequest(_message.Message):
    __slots__ = ("task_id", "tenant")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    tenant: str
    def __init__(self, task_id: _Optional[str] = ..., tenant: _Optional[str] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ("tenant", "state", "is_dead", "model", "limit", "before")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    IS_DEAD_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    state: str
    is_dead: bool
    model: str
    limit: int
    before: str
    def __init__(self, tenant: _Optional[str] = ..., state: _Optional[str] = ..., is_dead: _Optional[bool] = ..., model: _Optional[str] = ..., limit: _Optional[int] = ..., before: _Optional[str] = ...) -> None: ...

class TaskReply(_message.Message):
    __slots__ = ("task_json",)
    TASK_JSON_FIELD_NUMBER: _ClassVar[int]
    task_json: str
    def __init__(self, task_json: _Optional[str] = ...) -> None: ...

class TaskPage(_message.Message):
    __slots__ = ("task_json",)
    TASK_JSON_FIELD_NUMBER: _ClassVar[int]
    task_json: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, task_json: _Optional[_Iterable[str]] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("task_id", "tenant", "cursor")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    tenant: str
    cursor: int
    def __init__(self, task_id: _Optional[str] = ..., tenant: _Optional[str] = ..., cursor: _Optional[int] = ...) -> None: ...

class TaskEvent(_message.Message):
    __slots__ = ("cursor", "chunk", "task_json", "explanation_json")
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    TASK_JSON_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_JSON_FIELD_NUMBER: _ClassVar[int]
    cursor: int
    chunk: OutputChunk
    task_json: str
    explanation_json: str
    def __init__(self, cursor: _Optional[int] = ..., chunk: _Optional[_Union[OutputChunk, _Mapping]] = ..., task_json: _Optional[str] = ..., explanation_json: _Optional[str] = ...) -> None: ...

class OutputChunk(_message.Message):
    __slots__ = ("token_ids", "text", "index", "logprobs")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    text: str
    index: int
    logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprob]
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., text: _Optional[str] = ..., index: _Optional[int] = ..., logprobs: _Optional[_Iterable[_Union[TokenLogprob, _Mapping]]] = ...) -> None: ...
