"""The runner: pulls leases over one gRPC stream and works them off at the local TorchServe.

One asyncio task streams each lease; what it reads becomes events of
:class:`~scheduler.runner.core.RunnerCore`, and what that answers is sent. When the stream to the
control plane breaks, the work goes on, its output waits in the core, and a new stream begins with
a hello that names every lease held. Stopping work on a lease closes its connection to TorchServe,
which is how that learns that nobody waits any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import grpc
import structlog

from handlers.model_config import DEFAULT_RESPONSE_TIMEOUT_S, ModelConfig
from handlers.wire import Chunk, Failure, Finish
from scheduler.clock import Clock
from scheduler.rpc import plait_pb2 as pb
from scheduler.rpc import plait_pb2_grpc as rpc
from scheduler.runner import devices
from scheduler.runner.core import Lease, RunnerCore, Step
from scheduler.runner.replicas import Listeners, Replicas
from scheduler.runner.weights import Weights
from scheduler.torchserve.inference import Answer, Inference, WorkerLost
from scheduler.torchserve.management import Management

log = structlog.get_logger(__name__)

PROTOCOL: Final = 1
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 1.0
#: Answers that stay the same until a person has done something, and the pause after one.
_REFUSALS: Final = (
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.FAILED_PRECONDITION,
)
_REFUSED_PAUSE_S: Final = 10.0
_FIRST_LOOK_S: Final = 5.0
#: How often to say something before the control plane has said what it wants.
_DEFAULT_HEARTBEAT_S: Final = 2.0
#: Seconds the control plane has to take back leases when this runner is stopped.
_FAREWELL_S: Final = 3.0
_LEAVING: Final = "the runner was stopped"
#: A machine that vanished without a word is noticed in the sum of the two.
_CHANNEL_OPTIONS: Final = (
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.max_send_message_length", 64 * 1024 * 1024),
)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this runner is."""

    #: Stable over restarts.
    runner_id: str
    node: str
    num_devices: int = 0
    #: What the devices are.
    device_kind: str = "cpu"
    #: Who rents us the container this is in, and what it calls that; empty: nobody.
    provider: str = ""
    container: str = ""
    #: Version of Plait.
    version: str = ""
    #: New with each process.
    session_id: str = field(default_factory=lambda: secrets.token_hex(8))


def load_runner_id(state: Path) -> str:
    """This state folder's runner id, made at the first call."""
    path = state / "runner_id"
    with contextlib.suppress(FileNotFoundError):
        if known := path.read_text("utf-8").strip():
            return known
    state.mkdir(parents=True, exist_ok=True)
    runner_id = f"{socket.gethostname()}-{secrets.token_hex(4)}"
    path.write_text(runner_id + "\n", "utf-8")
    return runner_id


class Runner:
    """One node's runner."""

    def __init__(
        self,
        identity: Identity,
        target: str,
        inference: Inference,
        management: Management,
        configs: Mapping[str, ModelConfig],
        store: Path,
        clock: Clock,
        *,
        poll_s: float = 1.0,
        weights: Weights | None = None,
        join_token: Callable[[], str] = str,
    ) -> None:
        """``target`` is ``host:port`` of the control plane's gRPC server; ``join_token`` tells what
        is shown there, at each attempt; empty: nothing."""
        self._join_token = join_token
        self._identity = identity
        self._target = target
        self._inference = inference
        self._configs = configs
        self._core = RunnerCore()
        listeners = Listeners(self._core.in_flight, self._replicas_changed, self._replica_broken)
        self._clock = clock
        self._replicas = Replicas(
            management, configs, store, clock, listeners, poll_s=poll_s, weights=weights
        )
        self._weights = weights
        self._heartbeat_s = _DEFAULT_HEARTBEAT_S
        #: How busy the node was when that was last read.
        self._reading = pb.NodeState()
        self._work: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._outbox: asyncio.Queue[pb.RunnerMessage] | None = None
        self._is_leaving = False
        #: Set when no lease is held any more, or nobody is there to take one back.
        self._is_free = asyncio.Event()

    def __repr__(self) -> str:
        is_connected = self._outbox is not None
        return f"<Runner {self._identity.runner_id} connected={is_connected} {self._core!r}>"

    async def run(self) -> None:
        """Work until cancelled, then give back what is not finished."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._replicas.run(), name="replicas")
                group.create_task(self._stay_connected(), name="connection")
                group.create_task(self._read_state(), name="state")
                try:
                    await asyncio.get_running_loop().create_future()
                except asyncio.CancelledError:
                    await self._hand_back()
                    raise
        finally:
            self._stop(tuple(self._work))

    async def _hand_back(self) -> None:
        """Let others go on at once, instead of when the leases have run out."""
        self._is_leaving = True
        if self._outbox is None:
            return
        # Before the releases, or what is given back would come straight back.
        self._outbox.put_nowait(self._heartbeat())
        for key in self._core.unfinished():
            self._stop((key,))
            self._do(self._core.lost(*key, _LEAVING))
        self._is_free.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL_S):
                while self._core.held() and self._outbox is not None:
                    await self._is_free.wait()
                    self._is_free.clear()

    # -- the stream to the control plane

    async def _stay_connected(self) -> None:
        # What already runs is to be adopted, not placed anew, so the hello has to name it.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_LOOK_S):
                await self._replicas.has_looked.wait()
        pause_s = _FIRST_PAUSE_S
        while True:
            was_welcome = is_refused = False
            try:
                was_welcome = await self._converse()
                reason = "the control plane ended the stream"
            except grpc.aio.AioRpcError as error:
                reason = f"{error.code().name}: {error.details()}"
                is_refused = error.code() in _REFUSALS
            pause_s = _FIRST_PAUSE_S if was_welcome else min(pause_s * 2, _LONGEST_PAUSE_S)
            wait_s = _REFUSED_PAUSE_S if is_refused else pause_s
            log.warning("control_plane_lost", target=self._target, reason=reason, retry_s=wait_s)
            await asyncio.sleep(wait_s)

    async def _converse(self) -> bool:
        """Speak with the control plane until the stream ends; whether it welcomed this runner."""
        was_welcome = False
        outbox: asyncio.Queue[pb.RunnerMessage] = asyncio.Queue()
        outbox.put_nowait(self._hello())
        async with grpc.aio.insecure_channel(self._target, options=_CHANNEL_OPTIONS) as channel:
            # Generated code, without types.
            stub = rpc.RunnerServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
            token = self._join_token()
            call = stub.Connect(metadata=(("authorization", f"Bearer {token}"),) if token else ())
            talk = [
                asyncio.create_task(_write(call, outbox), name="to the control plane"),
                asyncio.create_task(self._beat(outbox), name="heartbeat"),
            ]
            try:
                async for message in call:
                    if message.WhichOneof("body") == "welcome":
                        was_welcome = True
                        self._outbox = outbox
                        log.info("control_plane_found", target=self._target)
                    self._heard(message)
            finally:
                self._outbox = None
                self._is_free.set()
                self._core.disconnected()
                call.cancel()
                for task in talk:
                    task.cancel()
                await asyncio.gather(*talk, return_exceptions=True)
        return was_welcome

    def _hello(self) -> pb.RunnerMessage:
        who = self._identity
        hello = pb.Hello(
            runner_id=who.runner_id,
            session_id=who.session_id,
            node=who.node,
            protocol=PROTOCOL,
            num_devices=who.num_devices,
            device_kind=who.device_kind,
            held=self._core.held(),
            replicas=self._replicas.report(),
            provider=who.provider,
            container=who.container,
            host=socket.gethostname(),
            version=who.version,
            models=sorted(self._configs),
            state=self._state(),
            holdings=self._holdings(),
        )
        return pb.RunnerMessage(hello=hello)

    async def _read_state(self) -> None:
        """Read how busy the node is, again and again; a driver that hangs holds up nothing else."""
        while True:
            self._reading = await asyncio.to_thread(devices.read)
            await asyncio.sleep(self._heartbeat_s)

    def _state(self) -> pb.NodeState:
        state = pb.NodeState(torchserve=self._replicas.health.report())
        state.MergeFrom(self._reading)
        state.num_active = len(self._work)
        return state

    async def _beat(self, outbox: asyncio.Queue[pb.RunnerMessage]) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_s)
            outbox.put_nowait(self._heartbeat())

    def _heartbeat(self) -> pb.RunnerMessage:
        beat = pb.Heartbeat(
            held=self._core.held(),
            replicas=self._replicas.report(),
            state=self._state(),
            holdings=self._holdings(),
            sent_at=self._clock.now(),
        )
        if self._is_leaving:
            for replica in beat.replicas:
                replica.state = pb.Replica.DRAINING
        return pb.RunnerMessage(heartbeat=beat)

    def _holdings(self) -> list[pb.Holding]:
        return [] if self._weights is None else self._weights.holdings()

    def _heard(self, message: pb.ControlMessage) -> None:
        match message.WhichOneof("body"):
            case "welcome":
                self._heartbeat_s = message.welcome.heartbeat_s or _DEFAULT_HEARTBEAT_S
                self._do(self._core.welcomed(message.welcome.kept))
            case "grant":
                self._do(self._core.granted(message.grant))
            case "cancel":
                cancel = message.cancel
                log.info("lease_ended", task_id=cancel.task_id, why=cancel.reason)
                self._do(self._core.cancelled(cancel.task_id, cancel.fence))
            case "ack":
                self._core.acknowledged(message.ack)
                if not self._core.held():
                    self._is_free.set()
            case "desired_replicas":
                self._replicas.want(message.desired_replicas.replicas)

    # -- carrying out what the core says

    def _do(self, step: Step) -> None:
        self._stop(step.stop)
        for lease in step.start:
            if self._is_leaving:
                self._do(self._core.lost(*lease.key, _LEAVING))
                continue
            task = asyncio.create_task(self._work_on(lease), name=f"lease {lease.task_id}")
            self._work[lease.key] = task
            task.add_done_callback(partial(self._ended, lease.key))
        if self._outbox is not None:
            for message in step.send:
                self._outbox.put_nowait(message)
        for key, after_s in step.gathers:
            asyncio.get_running_loop().call_later(after_s, self._flush, key)

    def _flush(self, key: tuple[str, int]) -> None:
        self._do(self._core.flush(*key))

    def _stop(self, keys: tuple[tuple[str, int], ...]) -> None:
        for key in keys:
            if (task := self._work.get(key)) is not None:
                task.cancel()

    def _ended(self, key: tuple[str, int], task: asyncio.Task[None]) -> None:
        self._work.pop(key, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Only a fault of ours ends here; the task goes back instead of hanging.
            log.error("lease_failed", task_id=key[0], exc_info=error)
            self._do(self._core.lost(*key, f"the runner failed: {error!r}"))

    async def _work_on(self, lease: Lease) -> None:
        log.info("lease_started", task_id=lease.task_id, fence=lease.fence, replica=lease.replica)
        idle_timeout_s = _idle_timeout_s(self._configs.get(lease.model))
        try:
            async with contextlib.aclosing(
                self._inference.stream(lease.replica, lease.document, idle_timeout_s)
            ) as frames:
                async for frame in frames:
                    self._do(self._event(lease, frame))
        except WorkerLost as lost:
            log.warning("worker_lost", task_id=lease.task_id, reason=str(lost))
            # Before the release: whoever hears of it must not choose the same replica again.
            self._replicas.suspect(lease.replica, str(lost), is_silent=lost.is_silent)
            self._do(self._core.lost(*lease.key, str(lost)))
        else:
            self._replicas.trust(lease.replica)
            log.info("lease_finished", task_id=lease.task_id, fence=lease.fence)

    def _event(self, lease: Lease, frame: Chunk | Finish | Failure | Answer) -> Step:
        match frame:
            case Chunk():
                return self._core.produced(*lease.key, frame)
            case Finish():
                return self._core.finished(*lease.key, frame)
            case Failure():
                return self._core.refused(*lease.key, frame)
            case Answer():
                return self._core.answered(*lease.key, frame.document)

    # -- what the replicas tell

    def _replicas_changed(self) -> None:
        if self._outbox is not None:
            self._outbox.put_nowait(self._heartbeat())

    def _replica_broken(self, name: str, reason: str) -> None:
        for key in self._core.working_on(name):
            self._stop((key,))
            self._do(self._core.lost(*key, f"{name} was removed: {reason}"))


def _idle_timeout_s(config: ModelConfig | None) -> float:
    """How long an answer may be silent. TorchServe itself ends a worker that is silent for the
    model's response timeout, and says so; if nothing is heard for twice as long, it hangs."""
    return 2.0 * (config.response_timeout_s if config is not None else DEFAULT_RESPONSE_TIMEOUT_S)


async def _write(
    call: grpc.aio.StreamStreamCall[pb.RunnerMessage, pb.ControlMessage],
    outbox: asyncio.Queue[pb.RunnerMessage],
) -> None:
    """Write until the stream breaks, which the reader reports.

    Not a request iterator: gRPC leaves one that waits behind when the stream ends.
    """
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        while True:
            await call.write(await outbox.get())
