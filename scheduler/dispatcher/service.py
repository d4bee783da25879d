"""Hands tasks to the runners that have room for them, and writes down what they produce.

The task book decides which task goes next and guards every write with its fencing token;
:mod:`scheduler.dispatcher.sessions` decides which replica takes it. This carries messages between
the two. Leases of a runner whose stream broke stay with it until they expire or it says hello
again, since it goes on working in the meantime.

It does not decide which replicas should exist: it is told through :meth:`want`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final

import grpc
import structlog

from scheduler.clock import Clock
from scheduler.cluster_view import NodeView, Placed
from scheduler.container import Reliance
from scheduler.dispatcher import messages
from scheduler.dispatcher.granting import Granting
from scheduler.dispatcher.link import Link
from scheduler.dispatcher.sessions import LeaseKey, Sessions
from scheduler.errors import (
    NotPermitted,
    StoreUnavailable,
    TaskNotFound,
    Unauthenticated,
    Unavailable,
)
from scheduler.node_book import NodeBook
from scheduler.rpc import plait_pb2 as pb
from scheduler.rpc import plait_pb2_grpc as rpc
from scheduler.task_book import TaskBook

log = structlog.get_logger(__name__)

#: Options of a gRPC server that runners connect to: they ping every few seconds, which a server
#: takes for an attack by default.
SERVER_OPTIONS: Final = (
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 2_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.max_send_message_length", 64 * 1024 * 1024),
    # Two control planes on one port would each take half of the runners.
    ("grpc.so_reuseport", 0),
)
#: Leases' terms a lost runner's replicas are still counted for.
_TERMS_UNTIL_FORGOTTEN: Final = 3
#: Part of a lease's term after which a runner that says nothing counts as lost: before its leases
#: run out, or they would be granted to it again.
_SILENT_TERMS: Final = 0.75
#: Part of a lease's term without a look after which it is we who did not listen.
_AWAY_TERMS: Final = 0.5


class Dispatcher(rpc.RunnerServiceServicer):
    """The control plane's side of every runner's stream."""

    def __init__(
        self,
        book: TaskBook,
        nodes: NodeBook,
        clock: Clock,
        *,
        lease_ttl_s: float = 10.0,
        heartbeat_s: float = 2.0,
        poll_s: float = 1.0,
        reliance: Reliance | None = None,
        journal_interval_s: float = 0.0,
        admit: Callable[[str | None], Awaitable[None]] | None = None,
    ) -> None:
        """``journal_interval_s``: most seconds for which output is gathered, in a container that is
        trusted by ``reliance``. ``admit`` raises Unauthenticated or NotPermitted when what a runner
        shows does not let it join; it is asked again at every heartbeat."""
        self._admit_runner = admit
        self._book = book
        self._nodes = nodes
        self._clock = clock
        self._lease_ttl_s = lease_ttl_s
        self._heartbeat_s = heartbeat_s
        self._poll_s = poll_s
        self._silent_after_s = max(_SILENT_TERMS * lease_ttl_s, 2 * heartbeat_s)
        #: When streams were last looked at.
        self._looked_at: float | None = None
        self._sessions = Sessions()
        self._links: dict[str, Link] = {}
        self._granting = Granting(
            book,
            clock,
            self._sessions,
            self._links,
            reliance=reliance or Reliance(),
            journal_interval_s=journal_interval_s,
        )
        #: Streams whose hello is being answered, the newest of each runner.
        self._arriving: dict[str, Link] = {}
        self._wanted: dict[str, pb.DesiredReplicas] = {}
        self._listeners: list[Callable[[], None]] = []
        book.ledger.on_queued(self._granting.awaken)
        book.ledger.on_changes(self._granting.saw)
        book.ledger.on_lease_ended(self._lease_was_ended)

    def __repr__(self) -> str:
        return f"<Dispatcher {self._sessions!r}>"

    async def run(self) -> None:
        """Grant until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._granting.run(), name="grant")
            group.create_task(self._granting.hedger.run(), name="hedge")
            group.create_task(self._look_again(), name="look again")

    def nodes(self) -> Sequence[NodeView]:
        """Nodes whose runner is connected to this control plane, or was a short while ago."""
        return self._sessions.nodes()

    def on_nodes_changed(self, listener: Callable[[], None]) -> None:
        """``listener()`` is called when a runner or a replica came, went or changed its state."""
        self._listeners.append(listener)

    def want(self, runner_id: str, replicas: Sequence[Placed] | None) -> None:
        """Have a runner run exactly these replicas, now and after every hello; None: whatever it
        runs."""
        if replicas is None:
            self._wanted.pop(runner_id, None)
            self._sessions.want(runner_id, None)
            return
        wanted = messages.desired_replicas(replicas)
        if self._wanted.get(runner_id) == wanted:
            return
        self._wanted[runner_id] = wanted
        # From now on nothing is granted to what is to go: a grant sent before this message is work
        # in flight when the runner reads it, and one sent after it would be lost.
        self._sessions.want(runner_id, {r.name: r.device_ids for r in replicas})
        self._granting.awaken_all()
        if (link := self._links.get(runner_id)) is not None:
            link.send(pb.ControlMessage(desired_replicas=wanted))

    def want_again(self, runner_id: str) -> None:
        """Tell a runner once more what it should run."""
        link, wanted = self._links.get(runner_id), self._wanted.get(runner_id)
        if link is not None and wanted is not None:
            link.send(pb.ControlMessage(desired_replicas=wanted))

    def dismiss(self, runner_id: str, fence: int, reason: str) -> None:
        """End a runner's stream, if it is the one of that fence; nothing more is granted on it."""
        link = self._links.get(runner_id)
        if link is not None and link.fence == fence:
            log.warning("runner_dismissed", runner=runner_id, reason=reason)
            self._dismiss(link)

    def leases(self, runner_id: str) -> set[tuple[str, int]]:
        """Leases (task, fence) that were granted to a runner here, or that it kept, and that have
        not ended."""
        return {(lease.task_id, lease.fence) for lease in self._sessions.leases(runner_id)}

    def close(self) -> None:
        """End every stream, so that the server can stop; runners connect again elsewhere."""
        for link in self._links.values():
            link.close()

    # -- a runner's stream

    async def Connect(
        self,
        request_iterator: AsyncIterator[pb.RunnerMessage],
        context: grpc.aio.ServicerContext[pb.RunnerMessage, pb.ControlMessage],
    ) -> AsyncIterator[pb.ControlMessage]:
        """One runner session, from hello to the end of the stream."""
        hello = await self._expect_hello(request_iterator, context)
        link = Link(hello, self._book, self._lease_is_over)
        if self._admit_runner is not None:
            link.authorization = dict(context.invocation_metadata() or ()).get("authorization")
            await self._check_admission(self._admit_runner, link, context)
        self._arriving[hello.runner_id] = link
        try:
            link.send(await self._welcome(hello, link))
        except Unavailable as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        finally:
            if self._arriving.get(hello.runner_id) is link:
                del self._arriving[hello.runner_id]
        self._admit(hello, link)
        reader = asyncio.create_task(self._read(link, request_iterator), name="runner stream")
        try:
            while (message := await link.next_message()) is not None:
                yield message
        finally:
            reader.cancel()
            self._dismiss(link)

    async def _expect_hello(
        self,
        request_iterator: AsyncIterator[pb.RunnerMessage],
        context: grpc.aio.ServicerContext[pb.RunnerMessage, pb.ControlMessage],
    ) -> pb.Hello:
        first = await anext(aiter(request_iterator), pb.RunnerMessage())
        if (complaint := messages.complaint(first)) is not None:
            await context.abort(*complaint)
        return first.hello

    async def _check_admission(
        self,
        admit: Callable[[str | None], Awaitable[None]],
        link: Link,
        context: grpc.aio.ServicerContext[pb.RunnerMessage, pb.ControlMessage],
    ) -> None:
        try:
            await admit(link.authorization)
        except Unavailable as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        except Unauthenticated as error:
            log.warning("runner_refused", runner=link.runner_id, reason=str(error))
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
        except NotPermitted as error:
            log.warning("runner_refused", runner=link.runner_id, reason=str(error))
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))

    async def _welcome(self, hello: pb.Hello, link: Link) -> pb.ControlMessage:
        """Settle which leases the runner keeps, and what the journal lacks of each."""
        if (old := self._links.pop(hello.runner_id, None)) is not None:
            old.close()
            self._sessions.closed(old.runner_id, old.connection, self._clock.monotonic())
        held = [(lease.task_id, lease.fence) for lease in hello.held]
        lost = set(await self._book.renew(hello.runner_id, held))
        held = [key for key in held if key not in lost]
        self._check_newest(hello, link)
        reason = "the runner no longer has it"
        released = await self._book.release_others(hello.runner_id, held, reason)
        kept, leases = [], {}
        for task_id, fence in held:
            with contextlib.suppress(TaskNotFound):
                task = await self._book.task(task_id)
                kept.append(messages.ack(task_id, fence, next_seq=task.num_chunks))
                leases[LeaseKey(task_id, fence)] = task.replica or ""
        view = messages.node_view(hello, self._clock.now())
        link.fence = await self._nodes.arrive(view)
        self._check_newest(hello, link)
        self._sessions.opened(replace(view, fence=link.fence), link.connection, leases)
        log.info(
            "runner_welcomed",
            runner=hello.runner_id,
            node=hello.node,
            kept=len(kept),
            lost=len(lost),
            released=len(released),
        )
        welcome = pb.Welcome(
            lease_ttl_s=self._lease_ttl_s, heartbeat_s=self._heartbeat_s, kept=kept
        )
        return pb.ControlMessage(welcome=welcome)

    def _check_newest(self, hello: pb.Hello, link: Link) -> None:
        """Of two hellos that cross, the newer counts, whichever is answered first."""
        if self._arriving.get(hello.runner_id) is not link:
            raise Unavailable("a newer stream of this runner has taken the place of this one")

    def _admit(self, hello: pb.Hello, link: Link) -> None:
        """From here on the runner is granted tasks."""
        self._links[hello.runner_id] = link
        link.heard_at = self._clock.monotonic()
        if (wanted := self._wanted.get(hello.runner_id)) is not None:
            link.send(pb.ControlMessage(desired_replicas=wanted))
        self._granting.awaken_all()
        self._tell_nodes_changed()

    def _dismiss(self, link: Link) -> None:
        link.close()
        if self._links.get(link.runner_id) is link:
            del self._links[link.runner_id]
            log.warning("runner_lost", runner=link.runner_id)
        self._sessions.closed(link.runner_id, link.connection, self._clock.monotonic())
        self._tell_nodes_changed()

    async def _read(self, link: Link, request_iterator: AsyncIterator[pb.RunnerMessage]) -> None:
        try:
            async for message in request_iterator:
                link.heard_at = self._clock.monotonic()
                match message.WhichOneof("body"):
                    case "progress":
                        lease = LeaseKey(message.progress.task_id, message.progress.fence)
                        self._granting.hedger.begun(lease)
                        link.progressed(message.progress)
                    case "finish":
                        link.finished(message.finish.task_id, message.finish.fence, message)
                    case "release":
                        link.finished(message.release.task_id, message.release.fence, message)
                    case "heartbeat":
                        await self._beat(link, message.heartbeat)
        except Exception:
            log.exception("runner_not_understood", runner=link.runner_id)
        finally:
            link.close()

    async def _beat(self, link: Link, heartbeat: pb.Heartbeat) -> None:
        if self._links.get(link.runner_id) is not link:
            return
        if self._admit_runner is not None:
            try:
                await self._admit_runner(link.authorization)
            except (Unauthenticated, NotPermitted) as error:
                self.dismiss(link.runner_id, link.fence, str(error))
                return
        views = messages.replica_views(heartbeat.replicas)
        state, now = messages.node_state(heartbeat.state), self._clock.now()
        changed = self._sessions.reported(link.runner_id, views, state, now)
        if heartbeat.sent_at:
            self._sessions.told_the_time(link.runner_id, heartbeat.sent_at - now)
        self._sessions.holds(link.runner_id, messages.holding_views(heartbeat.holdings))
        for model in changed:
            self._granting.awaken(model)
        if changed:
            self._tell_nodes_changed()
        held = [(lease.task_id, lease.fence) for lease in heartbeat.held]
        try:
            lost = await self._book.renew(link.runner_id, held)
        except StoreUnavailable as error:
            log.warning("leases_not_renewed", runner=link.runner_id, error=str(error))
            return
        for task_id, fence in lost:
            link.send(messages.cancel(task_id, fence, "the lease has ended"))
            self._lease_is_over(link.runner_id, LeaseKey(task_id, fence))

    def _lease_is_over(self, runner_id: str, lease: LeaseKey) -> None:
        self._granting.hedger.ended(lease)
        self._sessions.ended(runner_id, lease)
        self._granting.awaken_all()

    def _lease_was_ended(self, task_id: str, fence: int, runner: str) -> None:
        """The book ended a lease itself: its holder is to stop."""
        reason = "cancelled, paused, parked, past its deadline, or not heard of in time"
        if (link := self._links.get(runner)) is not None:
            link.send(messages.cancel(task_id, fence, reason))
        self._lease_is_over(runner, LeaseKey(task_id, fence))

    async def _look_again(self) -> None:
        """Whatever was not announced (a commit in doubt) does not wait for ever."""
        while True:
            await asyncio.sleep(self._poll_s)
            try:
                waiting = await self._book.depth()
            except StoreUnavailable as error:
                log.warning("store_refused", error=str(error))
                continue
            for model in waiting:
                self._granting.awaken(model)

    # -- looking after streams

    def dismiss_silent(self) -> dict[str, float]:
        """End the streams of runners that have said nothing for too long: a machine that stands
        still or is cut off keeps its stream for many minutes. Seconds of silence, by runner."""
        now = self._clock.monotonic()
        looked_at, self._looked_at = self._looked_at, now
        if looked_at is None or now - looked_at > _AWAY_TERMS * self._lease_ttl_s:
            return {}  # it is this process that stood still, and has not read what they said
        silent = {
            link: now - link.heard_at
            for link in self._links.values()
            if now - link.heard_at > self._silent_after_s
        }
        for link, for_s in silent.items():
            log.warning("runner_silent", runner=link.runner_id, for_s=for_s)
            self._dismiss(link)
        return {link.runner_id: for_s for link, for_s in silent.items()}

    def forget_lost(self) -> list[str]:
        """Forget runners that have been away for several terms of a lease; their ids."""
        lost_before = self._clock.monotonic() - _TERMS_UNTIL_FORGOTTEN * self._lease_ttl_s
        forgotten = self._sessions.forget_lost(lost_before)
        for runner_id in forgotten:
            self._wanted.pop(runner_id, None)
        if forgotten:
            self._tell_nodes_changed()
        return forgotten

    def _tell_nodes_changed(self) -> None:
        for listener in self._listeners:
            listener()
