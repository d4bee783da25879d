"""Plait's own gRPC service for clients, and how both services are put onto a server.

``Watch`` follows a task from a cursor on. Cancelling the call says nothing about the task: who
follows does not own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from scheduler.gateway import views
from scheduler.gateway.front import Front
from scheduler.gateway.grpc_inference import InferenceService
from scheduler.gateway.grpc_status import problems_as_status, tenant_of
from scheduler.gateway.submission import parse_tenant
from scheduler.rpc import plait_pb2 as pb
from scheduler.rpc.inference_pb2_grpc import add_InferenceAPIsServiceServicer_to_server
from scheduler.rpc.logprobs import to_messages
from scheduler.rpc.plait_pb2_grpc import TaskServiceServicer, add_TaskServiceServicer_to_server
from scheduler.task import TaskEvent

#: Room for the frame around a body of the largest size.
_FRAME_BYTES = 64 * 1024


class TaskService(TaskServiceServicer):
    """``plait.v1.TaskService``."""

    def __init__(self, front: Front) -> None:
        self._front = front

    async def Watch(self, request: pb.WatchRequest, context: Any) -> AsyncIterator[pb.TaskEvent]:
        async with problems_as_status(context):
            named = request.tenant
            tenant = parse_tenant(named, "tenant") if named else tenant_of(context)
            task = await self._front.book.task(request.task_id, tenant)
            async with aclosing(self._front.follow(task.id, request.cursor)) as events:
                async for event in events:
                    if event is not None:
                        yield _to_message(event)


def _to_message(event: TaskEvent) -> pb.TaskEvent:
    if event.chunk is not None:
        given = event.chunk
        chunk = pb.OutputChunk(
            token_ids=given.token_ids,
            text=given.text,
            index=given.index,
            logprobs=to_messages(given.logprobs),
        )
        return pb.TaskEvent(cursor=event.cursor, chunk=chunk)
    if event.task is None:
        return pb.TaskEvent(cursor=event.cursor)
    document = views.outcome(event.task) if event.kind == "end" else views.summary(event.task)
    return pb.TaskEvent(cursor=event.cursor, task_json=views.to_json(document))


def server_options(max_body_bytes: int) -> list[tuple[str, int]]:
    """Options the gRPC server needs: our body limit, and pings that find dead connections."""
    return [
        ("grpc.max_receive_message_length", max_body_bytes + _FRAME_BYTES),
        ("grpc.max_send_message_length", -1),
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        # Clients may ping as often as that, also while they wait in a long queue.
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # Two servers on one port would share its clients by chance.
        ("grpc.so_reuseport", 0),
    ]


def attach(server: grpc.aio.Server, front: Front) -> None:
    """Put the client services onto a server that was not started yet."""
    # Generated code, without types.
    add_InferenceAPIsServiceServicer_to_server(InferenceService(front), server)  # type: ignore[no-untyped-call]  # generated
    add_TaskServiceServicer_to_server(TaskService(front), server)  # type: ignore[no-untyped-call]  # generated
