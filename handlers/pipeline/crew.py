"""Starts the stages' processes, brings them up, and brings back what is lost.

For each stage the crew knows what it has (a connection, a profile, layers, blocks, a place in the
epoch) and what it should have. Whenever something changes, ``_advance`` tells each stage the next
thing that is missing. So a first start, a lost stage and a new cut are one path: whoever lacks
nothing is told nothing, and only what must restart restarts.

A stage that dies ends the *epoch*: the connections between all stages and everything in flight
in them. A stage that hangs is killed: one that does not answer pings, or that has had a step for
much longer than steps take.

One thread calls this, and is not held up: it waits in ``wait`` and nowhere else.
"""

from __future__ import annotations

import hmac
import logging
import secrets
import selectors
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # upstream

from handlers.pipeline import step as steps
from handlers.pipeline.channel import Channel, Closed, Message
from handlers.pipeline.member import Member
from handlers.pipeline.orders import (
    Broken,
    Budget,
    CrewLost,
    Done,
    Event,
    Orders,
    Planner,
    Ready,
    Unfit,
)
from handlers.pipeline.partition import Cut
from handlers.pipeline.step import BLOCK, Step

logger = logging.getLogger(__name__)

HOST: Final = "127.0.0.1"
#: Seconds without a sign of life, or over one step, after which a stage is taken to hang.
SILENCE_S: Final = 10.0
#: How much longer than the slowest step so far a step may take before it counts as hanging, and
#: the most that may be: the slowest may have compiled something.
SLOWEST_TIMES: Final = 20.0
MOST_S: Final = 120.0
#: How often in a row a stage may end before it is ready.
MAX_DEATHS: Final = 3
_TICK_S: Final = 0.25
#: How long the reason of a break is waited for when only its effect was heard of.
_HINT_S: Final = 0.5


class Crew:
    """The processes of a replica's stages, as the driver sees them."""

    def __init__(self, orders: Orders, planner: Planner, budget: Budget) -> None:
        self._orders, self._planner, self._budget = orders, planner, budget
        self._secret = secrets.token_hex(16)
        self._listener = socket.create_server((HOST, 0))
        self._store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, self._welcome)
        self._woken, self._bell = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ, self._wake)
        self._events: list[Event] = []
        self._cuts: Sequence[Cut] | None = None
        self._num_blocks: int | None = None
        #: What running out of memory may leave of them.
        self._least_blocks = 1
        self._epoch = 0
        self._is_ready = False
        #: When a stage lost a neighbour, which stage, and what it says.
        self._hint: tuple[float, int, str] | None = None
        self._slowest_s = 0.0
        self.members: list[Member] = []
        self._standby = Member(-1)

    def __repr__(self) -> str:
        states = " ".join(member.state for member in self.members)
        return f"<Crew epoch={self._epoch} {states}>"

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def num_blocks(self) -> int | None:
        """That every stage holds, as far as it is decided."""
        return self._num_blocks

    def start(self) -> None:
        """Start every stage's process, in the thread that will live as long as they shall."""
        self.members = [Member(index) for index in range(len(self._orders.devices))]
        for member in self.members:
            self._spawn(member)

    def ring(self) -> None:
        """Make ``wait`` return early; from any thread."""
        self._bell.send(b"!")

    def wait(self, timeout_s: float) -> list[Event]:
        """What has happened; sleeps until something has, ``timeout_s`` at most.

        Raises:
            CrewLost: stages keep dying before they are ready.
            Unfit: a stage refused to load what it was told to.
        """
        if not self._events:
            for key, _ in self._selector.select(min(timeout_s, _TICK_S)):
                key.data()
        self._watch(time.monotonic())
        events, self._events = self._events, []
        return events

    def send(self, step: Step) -> None:
        """Give a step to all stages. A stage that is lost meanwhile shows in ``wait``."""
        now = time.monotonic()
        last = len(self.members) - 1
        for member in self.members:
            document = steps.encode(step, is_first=member.index == 0, is_last=member.index == last)
            self._tell(member, {"do": "step", "epoch": self._epoch, "step": document})
        self.members[0].is_due(now)

    def recut(self, cuts: Sequence[Cut]) -> None:
        """Have the stages reload so that they hold these layers; the epoch is over."""
        self._cuts, self._num_blocks, self._is_ready = cuts, None, False
        for member in self.members:
            member.num_blocks = member.epoch = None
        self._advance()

    def close(self) -> None:
        """Stop every stage and wait until it is gone."""
        crew = (*self.members, self._standby)
        for member in crew:
            self._tell(member, {"do": "stop"})
        for member in crew:
            member.end()
        self._selector.close()
        for connection in (self._listener, self._woken, self._bell):
            connection.close()

    def _spawn(self, member: Member) -> None:
        port = self._listener.getsockname()[1]
        member.spawn(HOST, port, self._secret)
        logger.info("stage_started stage=%d pid=%d", member.index, member.pid)

    def _wake(self) -> None:
        self._woken.recv(4096)

    def _welcome(self) -> None:
        """Take a new connection, if it is one of ours; its first message says which."""
        connection, _ = self._listener.accept()
        channel = Channel(connection)

        def first() -> None:
            self._selector.unregister(channel)
            try:
                hello, *rest = channel.receive()
                member = self._authenticated(hello)
            except (Closed, ValueError, KeyError, IndexError) as error:
                logger.warning("stage_refused reason=%s", error)
                channel.close()
                return
            member.connected(channel)
            self._selector.register(channel, selectors.EVENT_READ, lambda: self._read(member))
            for message in rest:
                self._hear(member, message)
            self._advance()

        self._selector.register(channel, selectors.EVENT_READ, first)

    def _authenticated(self, hello: Message) -> Member:
        if not hmac.compare_digest(str(hello["secret"]), self._secret):
            raise ValueError("a connection without our secret")
        for member in (*self.members, self._standby):
            if member.process is not None and member.pid == hello["pid"]:
                return member
        raise ValueError(f"process {hello['pid']} is none of ours")

    def _read(self, member: Member) -> None:
        channel = member.channel
        if channel is None:
            return
        try:
            messages = channel.receive()
        except Closed:
            self._lose(member)
            return
        for message in messages:
            self._hear(member, message)

    def _hear(self, member: Member, message: Message) -> None:
        now = time.monotonic()
        member.heard_at = now
        match message["did"]:
            case "step":
                if message["epoch"] == self._epoch and self._is_ready:
                    self._done(member, message, now)
                return
            case "ping":
                return
            case "fail":
                member.last_words = message["reason"]
                return
            case "refuse":
                raise Unfit(message["reason"])
            case "break":
                self._broken(member, message)
            case did:
                member.did(did, message)
        self._advance()

    def _done(self, member: Member, message: Message, now: float) -> None:
        self._slowest_s = max(self._slowest_s, message["s"])
        member.is_through(now)
        if member.index + 1 < len(self.members):
            self.members[member.index + 1].is_due(now)
        self._events.append(Done(member.index, message["number"], message["s"], message["draws"]))

    def _broken(self, member: Member, message: Message) -> None:
        if message["epoch"] is None:  # it broke at what it was told to do, not at a step
            member.doing = None
        if message["is_memory"]:
            if self._num_blocks is not None:
                self._num_blocks = max(self._least_blocks, self._num_blocks * 4 // 5)
            self._end_epoch(member.index, message["reason"])
        elif self._is_ready and message["epoch"] == self._epoch and self._hint is None:
            # It lost a neighbour. Who that is, and why, is about to be heard from elsewhere.
            self._hint = (time.monotonic(), member.index, message["reason"])

    def _end_epoch(self, stage: int, reason: str) -> None:
        self._hint = None
        if not self._is_ready:
            return
        logger.warning("epoch_broken epoch=%d stage=%d reason=%s", self._epoch, stage, reason)
        self._events.append(Broken(stage, reason))
        self._is_ready = False
        for member in self.members:
            member.epoch = None

    def _lose(self, member: Member) -> None:
        """A stage's process is gone, or as good as gone."""
        channel = member.channel
        if channel is not None:
            self._selector.unregister(channel)
        reason = member.bury()
        if member is self._standby:
            logger.warning("standby_lost reason=%s", reason)
            return
        logger.warning("stage_lost stage=%d reason=%s", member.index, reason)
        self._end_epoch(member.index, f"stage {member.index} ended: {reason}")
        if member.num_deaths > MAX_DEATHS:
            raise CrewLost(
                f"stage {member.index} ended {member.num_deaths} times before it was ready; "
                f"the last time: {reason}"
            )
        self._replace(member)

    def _replace(self, member: Member) -> None:
        """Give a stage a process again: the one that stands by, or a new one."""
        channel = self._standby.channel
        if channel is None:
            self._spawn(member)
            return
        member.take_over(self._standby)
        self._selector.modify(channel, selectors.EVENT_READ, lambda: self._read(member))
        logger.info("standby_taken stage=%d pid=%d", member.index, member.pid)
        self._advance()

    def _tell(self, member: Member, message: Mapping[str, Any]) -> None:
        if member.channel is None:
            return
        try:
            member.channel.send(message)
        except Closed:
            member.kill()  # its end is noticed where all ends are

    def _command(self, member: Member, message: Message) -> None:
        member.begin(message["do"], time.monotonic())
        self._tell(member, message)

    def _advance(self) -> None:
        """Tell each stage the next thing it lacks."""
        if self._is_ready or any(member.channel is None for member in self.members):
            return
        for each in (self._advance_profiles, self._advance_layers, self._advance_blocks):
            if not each():
                return
        self._advance_epoch()

    def _advance_profiles(self) -> bool:
        if self._cuts is not None:
            return True
        if self._orders.is_measured:
            lacking = [member for member in self.members if member.profile is None]
            for member in lacking:
                self._command_if_idle(member, "profile")
            if lacking:
                return False
        try:
            self._cuts = self._planner([member.profile for member in self.members])
        except ValueError as error:
            raise Unfit(str(error)) from error
        return True

    def _advance_layers(self) -> bool:
        assert self._cuts is not None
        pairs = zip(self.members, self._cuts, strict=True)
        lacking = [(member, cut) for member, cut in pairs if member.cut != cut]
        for member, cut in lacking:
            self._command_if_idle(member, "load", cut=list(cut))
        return not lacking

    def _advance_blocks(self) -> bool:
        if self._num_blocks is None:
            try:
                self._num_blocks = self._budget([member.loaded for member in self.members])
            except ValueError as error:
                raise Unfit(str(error)) from error
            # Less would not help: it is not the blocks then that take the memory.
            one_context = -(-self._orders.max_context // BLOCK) + 1
            self._least_blocks = min(self._num_blocks, max(one_context, self._num_blocks // 2))
        lacking = [member for member in self.members if member.num_blocks != self._num_blocks]
        for member in lacking:
            self._command_if_idle(member, "allocate", num_blocks=self._num_blocks)
        return not lacking

    def _advance_epoch(self) -> None:
        if any(member.doing is not None for member in self.members):
            return
        if self._epoch > 0 and all(member.epoch == self._epoch for member in self.members):
            self._be_ready()
            return
        self._epoch += 1
        for member in self.members:
            self._command(
                member,
                {
                    "do": "join",
                    "stage": member.index,
                    "epoch": self._epoch,
                    "port": self._store.port,
                    "num_stages": len(self.members),
                },
            )

    def _be_ready(self) -> None:
        assert self._num_blocks is not None
        self._is_ready = True
        for member in self.members:
            member.stand_by()
        logger.info("epoch_formed epoch=%d blocks=%d", self._epoch, self._num_blocks)
        self._events.append(Ready(self._epoch, self._num_blocks))
        if self._orders.has_standby and self._standby.process is None:
            self._spawn(self._standby)

    def _command_if_idle(self, member: Member, do: str, **facts: Any) -> None:
        if member.doing is not None:
            return
        orders = self._orders
        told: Message = {
            "do": do,
            "model_dir": orders.model_dir,
            "dtype": orders.dtype,
            "device": orders.devices[member.index],
            "stage": member.index,
            "kernels": dict(orders.kernels),
            "num_slots": orders.num_slots,
            "max_context": orders.max_context,
            "vocabulary_size": orders.vocabulary_size,
            "eos_token_ids": list(orders.eos_token_ids),
        }
        self._command(member, told | facts)

    def _watch(self, now: float) -> None:
        """Ping who is silent; kill who hangs; notice who died before saying hello."""
        if self._hint is not None and now - self._hint[0] > _HINT_S:
            self._end_epoch(*self._hint[1:])
            self._advance()
        limit_s = max(SILENCE_S, min(MOST_S, SLOWEST_TIMES * self._slowest_s))
        for member in (*self.members, self._standby):
            complaint = member.complaint(now, SILENCE_S, limit_s, self._orders.startup_timeout_s)
            if complaint:
                member.last_words = complaint
                member.kill()
            if member.channel is None and member.has_ended:
                self._lose(member)
            elif member.wants_ping(now, SILENCE_S / 4):
                self._tell(member, {"do": "ping"})
