"""Keeps TorchServe running the replicas this node should run, and tells how they are.

Every look asks TorchServe what is there and carries out what
:mod:`scheduler.runner.reconcile` decides, one call at a time for each replica. What already runs
when the runner starts is adopted. A replica that lost a task is not ready again until TorchServe
has said so a while later: right after a worker's death it may still say READY. One that only loses
tasks, or leaves one without a word, is made anew, whatever TorchServe says of it; so is one that
TorchServe has given up, and workers it has lost count of are killed before.

It knows leases only as a number per replica.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from handlers.model_config import ModelConfig
from scheduler.clock import Clock
from scheduler.errors import Unavailable
from scheduler.rpc import plait_pb2 as pb
from scheduler.runner.engine_status import forget_status, read_status
from scheduler.runner.reconcile import Action, State, Verdict, Wanted, decide
from scheduler.runner.torchserve_health import TorchServeHealth
from scheduler.runner.weights import Weights, say
from scheduler.torchserve.archive import ArchiveError, build_replica, parse_replica_name
from scheduler.torchserve.management import Description, Management, ManagementError

log = structlog.get_logger(__name__)

#: Seconds after a lost task before READY is believed again: at first, and at most, when every
#: task is lost again. A replica that says READY and serves nobody would use up all attempts of all.
_SUSPICION_S: Final = 1.0
_LONGEST_SUSPICION_S: Final = 30.0
#: Seconds between two looks while TorchServe does not answer: it is likely to be starting.
_ABSENT_POLL_S: Final = 0.2
_FIRST_PAUSE_S: Final = 2.0
_LONGEST_PAUSE_S: Final = 60.0
_UNKNOWN_STARTUP_TIMEOUT_S: Final = 300.0

_STATES: Final = {
    State.STARTING: pb.Replica.STARTING,
    State.READY: pb.Replica.READY,
    State.DRAINING: pb.Replica.DRAINING,
}


@dataclass(slots=True)
class _Status:
    """What is known of one replica between looks."""

    name: str
    state: pb.Replica.State = pb.Replica.STARTING
    detail: str = ""
    device_ids: tuple[int, ...] = ()
    #: What its engine tells of itself, as JSON text; empty: nothing.
    engine_json: str = ""
    not_ready_since: float | None = None
    suspected_at: float | None = None
    #: Times that it lost tasks since it last finished one, or was registered.
    num_losses: int = 0
    #: Whether it left a task without a word for too long.
    is_silent: bool = False
    #: Pause after the last action that failed, and when it is over.
    pause_s: float = 0.0
    retry_at: float = 0.0
    #: The call that is under way.
    busy: asyncio.Task[None] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Listeners:
    """Who is told what; all are called in the event loop."""

    #: Tasks being worked on, by replica.
    in_flight: Callable[[], Mapping[str, int]]
    #: A replica's state has changed.
    changed: Callable[[], None]
    #: A replica is removed with its leases; the second argument says why.
    broken: Callable[[str, str], None]


class Replicas:
    """The replicas of one node."""

    def __init__(
        self,
        management: Management,
        configs: Mapping[str, ModelConfig],
        store: Path,
        clock: Clock,
        listeners: Listeners,
        *,
        poll_s: float = 1.0,
        weights: Weights | None = None,
    ) -> None:
        """``weights``: who has models' files here; None: they are where their YAML says."""
        self._management = management
        self._configs = configs
        self._store = store
        self._clock = clock
        self._listeners = listeners
        self._poll_s = poll_s
        self._weights = weights
        #: None until the control plane has said what it wants: nothing is removed before that.
        self._wanted: dict[str, Wanted] | None = None
        self._known: dict[str, _Status] = {}
        #: How TorchServe itself is.
        self.health = TorchServeHealth()
        self._is_reachable = False
        self._wake = asyncio.Event()
        #: Set after the first look: from then on a report tells what really runs.
        self.has_looked = asyncio.Event()

    def __repr__(self) -> str:
        ready = sum(s.state == pb.Replica.READY for s in self._known.values())
        return f"<Replicas ready={ready}/{len(self._known)}>"

    def want(self, replicas: Iterable[pb.DesiredReplica]) -> None:
        """Run exactly these from now on."""
        wanted = {r.name: Wanted(r.name, r.model, tuple(r.device_ids)) for r in replicas}
        if wanted != self._wanted:
            self._wanted = wanted
            log.info("replicas_wanted", names=sorted(wanted))
        self._wake.set()

    def suspect(self, name: str, reason: str, *, is_silent: bool = False) -> None:
        """A task was lost on the replica: it takes nothing until TorchServe says it is READY, and
        with ``is_silent`` not before it was made anew."""
        status = self._known.get(name)
        if status is None:
            return
        now = self._clock.monotonic()
        # Tasks that are lost together are one loss.
        if status.suspected_at is None or now - status.suspected_at >= _suspicion_s(status):
            status.num_losses += 1
        status.suspected_at = now
        status.is_silent = status.is_silent or is_silent
        if status.state == pb.Replica.READY:
            self._set(status, pb.Replica.STARTING, reason)

    def trust(self, name: str) -> None:
        """A task was finished on the replica."""
        if (status := self._known.get(name)) is not None:
            status.num_losses = 0

    def look_again(self) -> None:
        """Look now instead of at the next turn."""
        self._wake.set()

    def report(self) -> list[pb.Replica]:
        """Every replica known, as the control plane is told of it."""
        in_flight = self._listeners.in_flight()
        return [self._report(status, in_flight) for status in self._known.values()]

    async def run(self) -> None:
        """Look, act, wait; until cancelled."""
        try:
            while True:
                # Cleared first, so that what happens during the look is seen at the next.
                self._wake.clear()
                await self._look()
                self.has_looked.set()
                # Not wait_for: on Python 3.11 it swallows a cancel that comes with the event.
                pause_s = self._poll_s if self._is_reachable else min(_ABSENT_POLL_S, self._poll_s)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._wake.wait()
        finally:
            for status in self._known.values():
                if status.busy is not None:
                    status.busy.cancel()

    async def _look(self) -> None:
        start = self._management.start_id()
        try:
            await self._management.renew_keys()
            current = await self._describe_all()
        except (Unavailable, ManagementError) as error:
            self._is_reachable = False
            self.health.silent(start, str(error))
            for status in self._known.values():
                self._set(status, pb.Replica.STARTING, str(error))
            return
        self._is_reachable = True
        self.health.answered(start)
        await self._read_statuses()
        for name in {*current, *(self._wanted or {})}:
            if name not in self._known:
                self._known[name] = _Status(name)
                self._listeners.changed()
            if self._known[name].busy is None:
                self._judge(self._known[name], current.get(name))
        for name in [n for n, s in self._known.items() if self._is_gone(s, current)]:
            del self._known[name]
            self._listeners.changed()
        if self._weights is not None:
            wanted = {each.model for each in (self._wanted or {}).values()}
            await self._weights.settle(wanted, {_model_of(name) for name in self._known})

    async def _read_statuses(self) -> None:
        names = list(self._known)
        told = await asyncio.to_thread(lambda: [read_status(self._store / name) for name in names])
        for name, engine_json in zip(names, told, strict=True):
            self._known[name].engine_json = engine_json

    async def _describe_all(self) -> dict[str, Description]:
        found: dict[str, Description] = {}
        for name in await self._management.names():
            if parse_replica_name(name) is None:
                continue
            description = await self._management.describe(name)
            if description is not None:
                found[name] = description
        return found

    def _is_gone(self, status: _Status, current: Mapping[str, Description]) -> bool:
        is_wanted = self._wanted is None or status.name in self._wanted
        return status.name not in current and not is_wanted and status.busy is None

    def _judge(self, status: _Status, current: Description | None) -> None:
        now = self._clock.monotonic()
        wanted = (self._wanted or {}).get(status.name)
        if self._wanted is None:
            if current is None:
                return
            # Adopted as it is until somebody says otherwise.
            model = _model_of(status.name)
            wanted = Wanted(status.name, model, current.device_ids)
        if current is not None:
            status.device_ids = current.device_ids
        is_ready = current is not None and current.is_ready
        if is_ready or current is None:
            status.not_ready_since = None
        elif status.not_ready_since is None:
            status.not_ready_since = now
        since = status.not_ready_since
        verdict = decide(
            wanted,
            current,
            in_flight=self._listeners.in_flight().get(status.name, 0),
            not_ready_s=0.0 if since is None else now - since,
            startup_timeout_s=self._startup_timeout_s(status.name),
            num_losses=status.num_losses,
            is_silent=status.is_silent,
        )
        self._carry_out(status, verdict, wanted, now)

    def _carry_out(
        self, status: _Status, verdict: Verdict, wanted: Wanted | None, now: float
    ) -> None:
        is_failed = status.state == pb.Replica.FAILED and verdict.action is Action.REGISTER
        if not is_failed and not self._is_suspect(status, verdict, now):
            self._set(status, _STATES[verdict.state], verdict.reason)
        if verdict.state is State.READY:
            status.pause_s = status.retry_at = 0.0
        if now < status.retry_at:
            return
        if verdict.action is Action.REGISTER and wanted is not None:
            if (config := self._with_files(status, wanted)) is not None:
                self._start(status, self._register(status, wanted, config), verdict)
        elif verdict.action in (Action.UNREGISTER, Action.REMOVE_BROKEN):
            if verdict.action is Action.REMOVE_BROKEN:
                self._listeners.broken(status.name, verdict.reason)
            self._start(status, self._unregister(status), verdict)

    def _is_suspect(self, status: _Status, verdict: Verdict, now: float) -> bool:
        at = status.suspected_at
        if verdict.state is not State.READY or at is None:
            return False
        if now - at < _suspicion_s(status):
            return True
        status.suspected_at = None
        return False

    def _start(self, status: _Status, work: Coroutine[None, None, None], verdict: Verdict) -> None:
        log.info(
            "replica_action", replica=status.name, action=verdict.action.value, why=verdict.reason
        )

        async def act() -> None:
            try:
                await work
            except Exception as error:
                # A fault of ours; it must neither pass unseen nor be repeated without a pause.
                log.exception("replica_action_failed", replica=status.name)
                self._failed(status, error)
            finally:
                status.busy = None
                self._wake.set()

        status.busy = asyncio.create_task(act(), name=f"{verdict.action.value} {status.name}")

    def _with_files(self, status: _Status, wanted: Wanted) -> ModelConfig | None:
        """The model to register, once its files are here."""
        config = self._configs.get(wanted.model)
        if config is None:
            known = ", ".join(sorted(self._configs)) or "none"
            error = ArchiveError(f"no model {wanted.model!r} here; configured are: {known}")
            self._failed(status, error)
            return None
        if self._weights is None:
            return config
        found = self._weights.find(config)
        if isinstance(found, ModelConfig):
            return found
        self._set(status, pb.Replica.STARTING, say(found))
        return None

    async def _register(self, status: _Status, wanted: Wanted, config: ModelConfig) -> None:
        parsed = parse_replica_name(wanted.name)
        try:
            if parsed is None:
                raise ArchiveError(f"{wanted.name!r} is no name of a replica")
            if self._weights is not None:
                await self._weights.use(config)
            folder = await asyncio.to_thread(
                build_replica, config, self._store, parsed[1], wanted.device_ids
            )
            await asyncio.to_thread(forget_status, folder)
            await self._management.kill_leftovers(wanted.name)
            await self._management.register(wanted.name, folder.name)
        except (ArchiveError, ManagementError, Unavailable, OSError, ValueError) as error:
            self._failed(status, error)
        else:
            status.num_losses, status.is_silent = 0, False
            log.info("replica_registered", replica=wanted.name, devices=list(wanted.device_ids))

    async def _unregister(self, status: _Status) -> None:
        try:
            await self._management.unregister(status.name)
        except (ManagementError, Unavailable) as error:
            self._back_off(status)
            log.warning("replica_not_removed", replica=status.name, error=str(error))
        else:
            status.pause_s = 0.0
            log.info("replica_removed", replica=status.name)

    def _back_off(self, status: _Status) -> None:
        status.pause_s = min(max(status.pause_s * 2, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
        status.retry_at = self._clock.monotonic() + status.pause_s

    def _failed(self, status: _Status, error: Exception) -> None:
        self._back_off(status)
        log.warning("replica_failed", replica=status.name, error=str(error), retry_s=status.pause_s)
        self._set(status, pb.Replica.FAILED, str(error))

    def _set(self, status: _Status, state: pb.Replica.State, detail: str) -> None:
        is_new = state != status.state
        status.state, status.detail = state, detail
        if is_new:
            name = pb.Replica.State.Name(state).lower()
            log.info("replica_changed", replica=status.name, state=name, why=detail)
            self._listeners.changed()

    def _report(self, status: _Status, in_flight: Mapping[str, int]) -> pb.Replica:
        model = _model_of(status.name)
        config = self._configs.get(model)
        return pb.Replica(
            name=status.name,
            model=model,
            state=status.state,
            capacity=config.max_batch if config is not None else 0,
            in_flight=in_flight.get(status.name, 0),
            device_ids=status.device_ids,
            detail=status.detail,
            engine_json=status.engine_json,
        )

    def _startup_timeout_s(self, name: str) -> float:
        config = self._configs.get(_model_of(name))
        return config.startup_timeout_s if config is not None else _UNKNOWN_STARTUP_TIMEOUT_S


def _suspicion_s(status: _Status) -> float:
    return float(min(_SUSPICION_S * 2 ** max(status.num_losses - 1, 0), _LONGEST_SUSPICION_S))


def _model_of(name: str) -> str:
    parsed = parse_replica_name(name)
    return parsed[0] if parsed is not None else name
