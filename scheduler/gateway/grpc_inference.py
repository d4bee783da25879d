"""TorchServe's gRPC inference service, for clients that were written for it.

The prompt is the entry "data" or "body" of the input map, or the only one. The answers are the
bytes that HTTP gives. A client that cancels its call, or goes, takes its task back.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from google.protobuf.empty_pb2 import Empty

from handlers.model_config import ModelConfig
from scheduler.errors import InvalidRequest, Unavailable
from scheduler.gateway import bodies
from scheduler.gateway.bodies import Prediction
from scheduler.gateway.following import Form, pieces, whole
from scheduler.gateway.front import Front
from scheduler.gateway.grpc_status import (
    CLASS_METADATA,
    TASK_METADATA,
    problems_as_status,
    tenant_of,
)
from scheduler.gateway.submission import parse_class
from scheduler.rpc import inference_pb2 as pb
from scheduler.rpc.inference_pb2_grpc import InferenceAPIsServiceServicer

#: Input entries that hold the prompt, in the order in which they are looked for.
INPUT_KEYS = ("data", "body")


class InferenceService(InferenceAPIsServiceServicer):
    """``InferenceAPIsService`` of TorchServe 0.12."""

    def __init__(self, front: Front) -> None:
        self._front = front

    async def Ping(
        self,
        request: Empty,  # noqa: ARG002  # the signature is gRPC's
        context: Any,
    ) -> pb.TorchServeHealthResponse:
        async with problems_as_status(context):
            if not await self._front.is_healthy():
                raise Unavailable("Unhealthy: the store refuses")
            return pb.TorchServeHealthResponse(health="Healthy")

    async def Predictions(
        self, request: pb.PredictionsRequest, context: Any
    ) -> pb.PredictionResponse:
        async with problems_as_status(context):
            tenant = await tenant_of(context, self._front)
            config, prediction = self._read(request, context)
            owned = self._front.owned(config, prediction.document, prediction.options, tenant)
            async with owned as task:
                await context.send_initial_metadata(((TASK_METADATA, task.id),))
                body, _ = await whole(self._front, task, prediction)
                return pb.PredictionResponse(prediction=body)

    async def StreamPredictions(
        self, request: pb.PredictionsRequest, context: Any
    ) -> AsyncIterator[pb.PredictionResponse]:
        async with problems_as_status(context):
            tenant = await tenant_of(context, self._front)
            config, prediction = self._read(request, context)
            owned = self._front.owned(config, prediction.document, prediction.options, tenant)
            async with owned as task:
                await context.send_initial_metadata(((TASK_METADATA, task.id),))
                if config.task != "generate":
                    body, _ = await whole(self._front, task, prediction)
                    yield pb.PredictionResponse(prediction=body)
                    return
                form = Form.TEXT if prediction.is_text else Form.LINES
                async with aclosing(pieces(self._front, task, form)) as parts:
                    async for part in parts:
                        yield pb.PredictionResponse(prediction=part)

    def _read(self, request: pb.PredictionsRequest, context: Any) -> tuple[ModelConfig, Prediction]:
        config = self._front.model(request.model_name, request.model_version)
        if not request.input:
            message = "input: is empty; put the prompt or a JSON request under 'data'"
            raise InvalidRequest(message, field="input")
        names = [name for name in INPUT_KEYS if name in request.input]
        if not names and len(request.input) > 1:
            given = ", ".join(sorted(request.input))[:200]
            message = f"input: which of {given} is the prompt? Put it under 'data'"
            raise InvalidRequest(message, field="input")
        body = request.input[names[0] if names else next(iter(request.input))]
        prediction = bodies.from_bytes(body, config.task)
        named = dict(context.invocation_metadata() or ()).get(CLASS_METADATA)
        return config, prediction.with_class(None if named is None else parse_class(named))
