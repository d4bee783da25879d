"""Follows a task over gRPC, through any number of lost connections.

The cursor counts the chunks seen. A follower that lost its stream attaches again with it, so no
chunk is missed and none comes twice, also when another control plane answers. It gives up when
nothing came for as long as it was told to be patient while nobody could be reached; a task that
waits in a queue is no reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, cast

import grpc

from handlers.wire import TokenLogprob
from scheduler.client import shapes
from scheduler.client.patience import Patience
from scheduler.client.problems import ApiError, Unreachable
from scheduler.rpc import plait_pb2 as pb
from scheduler.rpc.logprobs import from_messages
from scheduler.rpc.plait_pb2_grpc import TaskServiceStub

#: States a task never leaves.
FINAL_STATES: Final = frozenset({"succeeded", "failed", "cancelled", "expired"})
#: A server that was away is found again quickly; one that vanished without a word is noticed.
_OPTIONS: Final = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", -1),
)


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next piece of a task's output."""

    #: Chunks seen so far, this one included: where to attach again.
    cursor: int
    token_ids: tuple[int, ...]
    text: str
    #: Which of the task's answers goes on.
    index: int = 0
    #: One for each token; empty unless they were asked for.
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class State:
    """A change of the task's state; the last event is one with a final state."""

    cursor: int
    task: shapes.TaskOutcome

    @property
    def is_final(self) -> bool:
        return self.task["state"] in FINAL_STATES


class Watcher:
    """Follows tasks of one tenant at one gateway."""

    def __init__(
        self,
        target: str,
        tenant: str | None,
        patience_s: float,
        tell: Callable[[str], None],
        api_key: str = "",
    ) -> None:
        self._target = target
        self._tenant = tenant
        self._patience_s = patience_s
        self._tell = tell
        self._metadata = (("authorization", f"Bearer {api_key}"),) if api_key else ()
        self._channel = grpc.insecure_channel(target, options=_OPTIONS)
        # Generated code, without types.
        self._stub = TaskServiceStub(self._channel)  # type: ignore[no-untyped-call]  # generated

    def __repr__(self) -> str:
        return f"<Watcher {self._target} tenant={self._tenant!r}>"

    def close(self) -> None:
        self._channel.close()

    def watch(self, task_id: str, cursor: int = 0) -> Iterator[Chunk | State]:
        """Events after ``cursor``, up to the one with a final state.

        Raises:
            ApiError: there is no such task, or the cursor is beyond its end.
            Unreachable: patience ran out; the task goes on.
        """
        patience = Patience(self._patience_s, self._tell)
        while True:
            try:
                for event in self._attach(task_id, cursor):
                    patience.renew()
                    if isinstance(event, Chunk) and event.cursor <= cursor:
                        continue
                    _refuse_gap(task_id, event, cursor)
                    cursor = event.cursor
                    yield event
                    if isinstance(event, State) and event.is_final:
                        return
                lost: Exception = ConnectionError("the stream ended before the task did")
            except grpc.RpcError as error:
                lost = _unless_final(error)
            if not patience.pause(f"the stream from {self._target} broke"):
                message = f"nobody answers at {self._target}; task {task_id} was not taken back"
                raise Unreachable(f"{message}: {lost}") from lost

    def _attach(self, task_id: str, cursor: int) -> Iterator[Chunk | State]:
        request = pb.WatchRequest(task_id=task_id, tenant=self._tenant or "", cursor=cursor)
        call = self._stub.Watch(request, metadata=self._metadata)
        try:
            for message in call:
                if message.HasField("chunk"):
                    yield _chunk(message)
                elif message.HasField("task_json"):
                    task = cast(shapes.TaskOutcome, json.loads(message.task_json))
                    yield State(message.cursor, task)
        finally:
            call.cancel()


def _chunk(message: pb.TaskEvent) -> Chunk:
    chunk = message.chunk
    logprobs = from_messages(chunk.logprobs)
    return Chunk(message.cursor, tuple(chunk.token_ids), chunk.text, chunk.index, logprobs)


def _refuse_gap(task_id: str, event: Chunk | State, cursor: int) -> None:
    expected = cursor + 1 if isinstance(event, Chunk) else cursor
    if event.cursor > expected:
        message = f"chunk {cursor} of task {task_id} is missing from its stream"
        raise ApiError(500, "Gap", message)


def _unless_final(error: grpc.RpcError) -> Exception:
    """The error of a stream that can be taken up again.

    Raises:
        ApiError: the server said why it refuses, and asking again would not change it.
    """
    call = cast(Any, error)
    trailers = {str(key): value for key, value in call.trailing_metadata() or ()}
    details = str(call.details() or "")
    if call.code() is grpc.StatusCode.UNAVAILABLE:
        return ConnectionError(details)
    if "x-plait-type" not in trailers:
        if call.code() is grpc.StatusCode.UNIMPLEMENTED:
            raise ApiError(
                501, "NoSuchService", f"this server does not speak Plait's API: {details}"
            )
        # Not a word of the gateway: the transport broke, or the server was cut short.
        return ConnectionError(f"{call.code().name.lower()}: {details}")
    status, field = int(trailers["x-plait-code"]), str(trailers.get("x-plait-field", ""))
    raise ApiError(status, str(trailers["x-plait-type"]), details, field)
