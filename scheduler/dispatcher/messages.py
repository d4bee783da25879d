"""Turns the runner protocol's messages into the scheduler's records, and back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

import grpc

from scheduler.cluster_view import (
    DeviceView,
    HoldingView,
    NodeState,
    NodeView,
    Placed,
    ReplicaView,
    TorchServeView,
)
from scheduler.rpc import plait_pb2 as pb
from scheduler.rpc.logprobs import from_messages
from scheduler.task import Grant, JournalChunk, TaskError

#: Version of the runner protocol.
PROTOCOL: Final = 1
#: Longest word of an engine about itself that is shown.
MAX_ENGINE_CHARS: Final = 16 * 1024


def complaint(first: pb.RunnerMessage) -> tuple[grpc.StatusCode, str] | None:
    """What is wrong with a runner's first message; None: nothing."""
    hello = first.hello
    if first.WhichOneof("body") != "hello" or not hello.runner_id or not hello.session_id:
        text = "a runner's first message is a hello with runner_id and session_id"
        return grpc.StatusCode.INVALID_ARGUMENT, text
    if hello.protocol != PROTOCOL:
        text = f"the runner speaks protocol {hello.protocol}, this control plane {PROTOCOL}"
        return grpc.StatusCode.FAILED_PRECONDITION, text
    return None


def replica_views(replicas: Iterable[pb.Replica]) -> list[ReplicaView]:
    """What a runner reports, as values."""
    return [
        ReplicaView(
            name=replica.name,
            model=replica.model,
            state=pb.Replica.State.Name(replica.state).lower(),
            capacity=replica.capacity,
            in_flight=replica.in_flight,
            device_ids=tuple(replica.device_ids),
            detail=replica.detail,
            engine=_engine(replica.engine_json),
        )
        for replica in replicas
    ]


def node_view(hello: pb.Hello, now: float) -> NodeView:
    """A runner that says hello, with its node."""
    return NodeView(
        node=hello.node,
        runner_id=hello.runner_id,
        connected=True,
        num_devices=hello.num_devices,
        replicas=tuple(replica_views(hello.replicas)),
        device_kind=hello.device_kind,
        host=hello.host,
        provider=hello.provider,
        container=hello.container,
        version=hello.version,
        models=tuple(hello.models) or None,
        state=node_state(hello.state),
        holdings=holding_views(hello.holdings),
        connected_at=now,
        heard_at=now,
    )


def node_state(state: pb.NodeState) -> NodeState:
    """How a node is doing, as its runner reports it."""
    torchserve = state.torchserve
    return NodeState(
        devices=tuple(_device(each) for each in state.devices),
        cpu_ratio=state.cpu_ratio,
        memory_used_bytes=state.memory_used_bytes,
        memory_total_bytes=state.memory_total_bytes,
        torchserve=TorchServeView(
            pb.TorchServe.State.Name(torchserve.state).lower(),
            torchserve.num_restarts,
            torchserve.detail,
        ),
        num_active=state.num_active,
    )


def _device(device: pb.Device) -> DeviceView:
    return DeviceView(
        device.index,
        device.kind,
        device.busy_ratio if device.HasField("busy_ratio") else None,
        device.memory_used_bytes,
        device.memory_total_bytes,
    )


def holding_views(holdings: Iterable[pb.Holding]) -> tuple[HoldingView, ...]:
    """What a runner has of models' files, as values."""
    return tuple(
        HoldingView(
            model=holding.model,
            state=pb.Holding.State.Name(holding.state).lower(),
            held_bytes=holding.held_bytes,
            total_bytes=holding.total_bytes,
            bytes_per_s=holding.bytes_per_s,
            detail=holding.detail,
        )
        for holding in holdings
    )


def desired_replicas(replicas: Iterable[Placed]) -> pb.DesiredReplicas:
    """What a runner is to run, as it is told."""
    return pb.DesiredReplicas(
        replicas=[
            pb.DesiredReplica(name=r.name, model=r.model, device_ids=r.device_ids) for r in replicas
        ]
    )


def _engine(text: str) -> Mapping[str, Any] | None:
    """What an engine told of itself; a runner that speaks nonsense tells nothing."""
    try:
        document = json.loads(text) if len(text) <= MAX_ENGINE_CHARS else None
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def chunk(progress: pb.Progress) -> JournalChunk:
    """A journal entry from what a runner sent."""
    return JournalChunk(
        progress.seq,
        tuple(progress.token_ids),
        progress.text,
        progress.index,
        from_messages(progress.logprobs),
    )


def task_error(error: pb.Error) -> TaskError:
    """Why a task failed, from what a runner sent."""
    return TaskError(error.status, error.message, error.field)


def grant(granted: Grant, replica: str, journal_interval_s: float = 0.0) -> pb.ControlMessage:
    """A lease as its runner is told of it; for how long at most it may gather output."""
    task = granted.task
    first, *others = granted.generated or ((),)
    return pb.ControlMessage(
        grant=pb.Grant(
            task_id=task.id,
            fence=task.fence,
            attempt=task.attempt,
            model=task.model,
            replica=replica,
            document_json=json.dumps(dict(task.document), separators=(",", ":")),
            generated=first,
            other_generated=[pb.TokenIds(token_ids=each) for each in others],
            next_seq=task.num_chunks,
            journal_interval_s=journal_interval_s,
        )
    )


def cancel(task_id: str, fence: int, reason: str) -> pb.ControlMessage:
    """Word to the holder that its lease has ended."""
    return pb.ControlMessage(cancel=pb.Cancel(task_id=task_id, fence=fence, reason=reason))


def ack(task_id: str, fence: int, *, next_seq: int = 0, is_final: bool = False) -> pb.Ack:
    """What is on disk."""
    return pb.Ack(task_id=task_id, fence=fence, next_seq=next_seq, is_final=is_final)
