"""Plait's own gRPC service for clients, and how both services are put onto a server.

It has what the task API has over HTTP, with the same documents as JSON. ``Watch`` follows a task
from a cursor on. Cancelling the call says nothing about the task: who follows does not own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from scheduler.errors import InvalidRequest
from scheduler.gateway import bodies, views, waiting
from scheduler.gateway.front import Front
from scheduler.gateway.grpc_inference import InferenceService
from scheduler.gateway.grpc_status import problems_as_status, tenant_of
from scheduler.gateway.submission import Options, parse_options, parse_state
from scheduler.gateway.tasks_api import MAX_PAGE, PAGE
from scheduler.gateway.waiting import Waits
from scheduler.rpc import plait_pb2 as pb
from scheduler.rpc.inference_pb2_grpc import add_InferenceAPIsServiceServicer_to_server
from scheduler.rpc.logprobs import to_messages
from scheduler.rpc.plait_pb2_grpc import TaskServiceServicer, add_TaskServiceServicer_to_server
from scheduler.task import Attempt, Task, TaskEvent

#: Room for the frame around a body of the largest size.
_FRAME_BYTES = 64 * 1024


class TaskService(TaskServiceServicer):
    """``plait.v1.TaskService``."""

    def __init__(self, front: Front) -> None:
        self._front = front

    async def Submit(self, request: pb.SubmitRequest, context: Any) -> pb.TaskReply:
        async with problems_as_status(context):
            tenant = await tenant_of(context, self._front, request.tenant)
            config = self._front.model(request.model)
            document = _input(request.input_json)
            task, _ = await self._front.accept(config, document, _options(request), tenant)
            return _reply(task)

    async def Get(self, request: pb.TaskRequest, context: Any) -> pb.TaskReply:
        async with problems_as_status(context):
            tenant = await tenant_of(context, self._front, request.tenant)
            task = await self._front.book.task(request.task_id, tenant)
            document = await self._front.detail(task)
            return pb.TaskReply(task_json=views.to_json(document))

    async def List(self, request: pb.ListRequest, context: Any) -> pb.TaskPage:
        async with problems_as_status(context):
            tenant = await tenant_of(context, self._front, request.tenant)
            if request.limit > MAX_PAGE:
                message = f"is {request.limit}; allowed are 1 to {MAX_PAGE}, and 0 for {PAGE}"
                raise InvalidRequest(f"limit: {message}", field="limit")
            found = await self._front.book.tasks(
                tenant=tenant,
                model=self._front.model(request.model).name if request.model else None,
                state=parse_state(request.state or None),
                is_dead=request.is_dead,
                limit=request.limit or PAGE,
                before=request.before or None,
            )
            return pb.TaskPage(task_json=[views.to_json(views.summary(task)) for task in found])

    async def Cancel(self, request: pb.TaskRequest, context: Any) -> pb.TaskReply:
        async with problems_as_status(context):
            tenant = await tenant_of(context, self._front, request.tenant)
            reason = "cancelled by its tenant"
            return _reply(await self._front.book.cancel(request.task_id, tenant, reason))

    async def Pause(self, request: pb.TaskRequest, context: Any) -> pb.TaskReply:
        async with problems_as_status(context):
            tenant = await tenant_of(context, self._front, request.tenant)
            return _reply(await self._front.book.pause(request.task_id, tenant))

    async def Resume(self, request: pb.TaskRequest, context: Any) -> pb.TaskReply:
        async with problems_as_status(context):
            tenant = await tenant_of(context, self._front, request.tenant)
            return _reply(await self._front.book.resume(request.task_id, tenant))

    async def Requeue(self, request: pb.TaskRequest, context: Any) -> pb.TaskReply:
        async with problems_as_status(context):
            tenant = await tenant_of(context, self._front, request.tenant)
            return _reply(await self._front.book.requeue(request.task_id, tenant))

    async def Watch(self, request: pb.WatchRequest, context: Any) -> AsyncIterator[pb.TaskEvent]:
        async with problems_as_status(context):
            tenant = await tenant_of(context, self._front, request.tenant)
            task = await self._front.book.task(request.task_id, tenant)
            async with aclosing(waiting.follow(self._front, task.id, request.cursor)) as events:
                async for event in events:
                    if isinstance(event, Waits):
                        told = views.to_json(views.explanation(event.explanation))
                        yield pb.TaskEvent(cursor=event.cursor, explanation_json=told)
                    elif event is not None:
                        yield _to_message(event, await self._front.ended_attempt(event))


def _input(text: str) -> dict[str, Any]:
    try:
        return bodies.json_object(text.encode())
    except InvalidRequest as error:
        message = f"input_json: {error.message}"
        raise InvalidRequest(message, field="input_json", status=error.status) from None


def _options(request: pb.SubmitRequest) -> Options:
    given: dict[str, Any] = {
        "class": request.priority_class,
        "priority": request.priority,
        "deadline_s": request.deadline_s,
        "idempotency_key": request.idempotency_key,
    }
    # A field of its type's zero was not given: that is how proto3 has it.
    return parse_options({name: value for name, value in given.items() if value})


def _reply(task: Task) -> pb.TaskReply:
    return pb.TaskReply(task_json=views.to_json(views.outcome(task)))


def _to_message(event: TaskEvent, ended: Attempt | None) -> pb.TaskEvent:
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
    return pb.TaskEvent(cursor=event.cursor, task_json=views.to_json(views.state(event, ended)))


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
