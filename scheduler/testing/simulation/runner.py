"""A runner: the real core in a process that crashes, stands still, and loses its workers.

What surrounds the core in ``scheduler/runner/service.py`` is done here without TorchServe: a stream
to any control plane, heartbeats, and for each lease a generation that goes on from its journal.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any

from handlers.wire import Chunk, Failure, Finish, TokenLogprob
from scheduler.rpc import plait_pb2 as pb
from scheduler.runner.core import Lease, RunnerCore, Step
from scheduler.testing import output
from scheduler.testing.simulation.control import HEARTBEAT_S, ControlPlane
from scheduler.testing.simulation.loop import Process
from scheduler.testing.simulation.network import Network, Stream
from scheduler.testing.simulation.scenario import MODEL

#: Seconds until it looks for a control plane again.
RETRY_S = 0.5
#: Seconds for a step of a generation.
FASTEST_S, SLOWEST_S = 0.02, 0.4


class Runner:
    """One incarnation."""

    def __init__(
        self,
        name: str,
        process: Process,
        capacity: int,
        network: Network,
        planes: Callable[[], Sequence[ControlPlane]],
        rng: random.Random,
        report: Callable[[str], None],
    ) -> None:
        """``planes`` says which control planes are up."""
        self.name, self.process = name, process
        self.stream: Stream | None = None
        self._capacity, self._network, self._planes = capacity, network, planes
        self._rng, self._report = rng, report
        self._core = RunnerCore()
        self._is_welcome = False
        self._work: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._moves = asyncio.Event()
        self._moves.set()
        self._slowness = rng.choice([1.0, 1.0, 4.0])
        process.start(self._stay_connected())

    # -- what may happen to it

    async def stand_still(self, seconds: float) -> None:
        """The whole machine stops, and goes on as if nothing had been."""
        self._moves.clear()
        await asyncio.sleep(seconds)
        self._moves.set()

    def lose_worker(self) -> bool:
        """TorchServe's worker dies under what it works on; False when that was nothing."""
        lost = self._core.unfinished()
        for key in lost:
            self._stop((key,))
            self._do(self._core.lost(*key, f"the worker died under fence {key[1]}"))
        return bool(lost)

    # -- the stream

    async def _stay_connected(self) -> None:
        while True:
            if planes := self._planes():
                await self._converse(self._rng.choice(list(planes)))
            await asyncio.sleep(RETRY_S)
            await self._moves.wait()

    async def _converse(self, plane: ControlPlane) -> None:
        stream = self.stream = self._network.open(plane.process)
        stream.up.put(self._hello())
        plane.accept(stream)
        beat = self.process.start(self._beat(stream))
        try:
            async for message in stream.down:
                await self._moves.wait()
                self._heard(message)
        finally:
            self._is_welcome = False
            self._core.disconnected()
            beat.cancel()
            self.stream = None
            stream.up.end()
            self._network.streams.pop(stream, None)

    def _hello(self) -> pb.RunnerMessage:
        hello = pb.Hello(
            runner_id=self.name,
            session_id=self.process.name,
            node=self.name,
            protocol=1,
            held=self._core.held(),
            replicas=self._replicas(),
        )
        return pb.RunnerMessage(hello=hello)

    async def _beat(self, stream: Stream) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            await self._moves.wait()
            beat = pb.Heartbeat(held=self._core.held(), replicas=self._replicas())
            stream.up.put(pb.RunnerMessage(heartbeat=beat))

    def _replicas(self) -> list[pb.Replica]:
        name = f"{MODEL}__r0"
        return [pb.Replica(name=name, model=MODEL, state=pb.Replica.READY, capacity=self._capacity)]

    def _heard(self, message: pb.ControlMessage) -> None:
        match message.WhichOneof("body"):
            case "welcome":
                self._is_welcome = True
                self._do(self._core.welcomed(message.welcome.kept))
            case "grant":
                self._do(self._core.granted(message.grant))
            case "cancel":
                self._do(self._core.cancelled(message.cancel.task_id, message.cancel.fence))
            case "ack":
                self._core.acknowledged(message.ack)

    # -- carrying out what the core says

    def _do(self, step: Step) -> None:
        self._stop(step.stop)
        for lease in step.start:
            self._work[lease.key] = self.process.start(self._work_on(lease))
        if self._is_welcome and self.stream is not None:
            for message in step.send:
                self.stream.up.put(message)

    def _stop(self, keys: tuple[tuple[str, int], ...]) -> None:
        for key in keys:
            if (task := self._work.pop(key, None)) is not None:
                task.cancel()

    async def _work_on(self, lease: Lease) -> None:
        document = lease.document
        answers = [output.tokens(document, index) for index in range(output.num_answers(document))]
        at = self._positions(lease, answers)
        signed = TokenLogprob(-float(lease.fence))
        fails_after = document.get("fails_after")
        while unfinished := [
            index for index, all_of in enumerate(answers) if at[index] < len(all_of)
        ]:
            await self._step()
            if fails_after is not None and sum(at) >= fails_after:
                message = f"the handler refuses it, fence {lease.fence}"
                self._do(self._core.refused(*lease.key, Failure(422, message)))
                return
            index = self._rng.choice(unfinished)
            new = answers[index][at[index] : at[index] + self._rng.randint(1, 3)]
            at[index] += len(new)
            chunk = Chunk(new, output.text(new), index, (signed,) * len(new))
            self._do(self._core.produced(*lease.key, chunk))
        await self._step()
        for index in range(len(answers)):
            if tail := output.tail(document, index):
                self._do(self._core.produced(*lease.key, Chunk((), tail, index)))
        end = Finish(f"length, fence {lease.fence}", 1, sum(map(len, answers)))
        self._do(self._core.finished(*lease.key, end))

    async def _step(self) -> None:
        await asyncio.sleep(self._rng.uniform(FASTEST_S, SLOWEST_S) * self._slowness)
        await self._moves.wait()

    def _positions(self, lease: Lease, answers: list[tuple[int, ...]]) -> list[int]:
        """Where each answer goes on: after what its journal holds."""
        known: Any = lease.document.get("generated", [[] for _ in answers])
        known = [known] if len(answers) == 1 and "generated" in lease.document else known
        for index, (given, whole) in enumerate(zip(known, answers, strict=True)):
            if tuple(given) != whole[: len(given)]:
                self._report(f"promise 4: answer {index} of {lease.task_id} goes on from {given}")
        return [len(given) for given in known]
