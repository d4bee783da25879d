"""Turns the runner protocol's messages into the scheduler's records, and back."""

from __future__ import annotations

import json
from collections.abc import Iterable

from scheduler.cluster_view import ReplicaView
from scheduler.rpc import plait_pb2 as pb
from scheduler.task import Grant, JournalChunk, TaskError


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
        )
        for replica in replicas
    ]


def chunk(progress: pb.Progress) -> JournalChunk:
    """A journal entry from what a runner sent."""
    return JournalChunk(progress.seq, tuple(progress.token_ids), progress.text)


def task_error(error: pb.Error) -> TaskError:
    """Why a task failed, from what a runner sent."""
    return TaskError(error.status, error.message, error.field)


def grant(granted: Grant, replica: str) -> pb.ControlMessage:
    """A lease as its runner is told of it."""
    task = granted.task
    return pb.ControlMessage(
        grant=pb.Grant(
            task_id=task.id,
            fence=task.fence,
            attempt=task.attempt,
            model=task.model,
            replica=replica,
            document_json=json.dumps(dict(task.document), separators=(",", ":")),
            generated=granted.generated,
            next_seq=task.num_chunks,
        )
    )


def cancel(task_id: str, fence: int, reason: str) -> pb.ControlMessage:
    """Word to the holder that its lease has ended."""
    return pb.ControlMessage(cancel=pb.Cancel(task_id=task_id, fence=fence, reason=reason))


def ack(task_id: str, fence: int, *, next_seq: int = 0, is_final: bool = False) -> pb.Ack:
    """What is on disk."""
    return pb.Ack(task_id=task_id, fence=fence, next_seq=next_seq, is_final=is_final)
