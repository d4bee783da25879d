"""Which nodes there are, whichever control plane their runners speak with, and what each is to run.

This control plane's own runners are known from their streams; they are written down when they come,
change or go, and every few seconds while they live. Those of others are read from the store, when
another tells of a change and every few seconds besides. What the leader has decided is read in the
same way and handed to this control plane's streams, for whoever has a runner tells it.

A control plane that died wrote down that its runners were connected: they count as lost when
nothing new was written of them for a while. That is measured by this machine's own clock, from when
it was seen, so that clocks need not agree.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final, Protocol

import structlog

from scheduler.clock import Clock
from scheduler.cluster_view import HoldingView, NodeState, NodeView, Placed
from scheduler.errors import StoreUnavailable
from scheduler.node_book import NodeBook

log = structlog.get_logger(__name__)

#: Seconds between two looks at the store while nobody tells of a change.
LOOK_S: Final = 4.0
#: Looks after which a runner counts as lost of which its control plane has written nothing new.
_SILENT_LOOKS: Final = 3
#: Leases' terms for which a lost runner is still shown, and its replicas are still counted.
_TERMS_UNTIL_FORGOTTEN: Final = 3
_STORE_PAUSE_S: Final = 0.5
_ELSEWHERE: Final = "the runner has opened a stream to another control plane"


class Streams(Protocol):
    """Whoever speaks with this control plane's runners."""

    def nodes(self) -> Sequence[NodeView]:
        """Nodes whose runner speaks, or spoke, with this control plane."""
        ...

    def on_nodes_changed(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` when a runner or a replica comes, goes or changes its state."""
        ...

    def want(self, runner_id: str, replicas: Sequence[Placed] | None) -> None:
        """Have a runner run exactly these replicas; None: whatever it runs."""
        ...

    def dismiss(self, runner_id: str, fence: int, reason: str) -> None:
        """End a runner's stream, if it is the one of that fence."""
        ...


class Registry:
    """All nodes, as one control plane knows them."""

    def __init__(
        self,
        book: NodeBook,
        clock: Clock,
        streams: Streams,
        *,
        lease_ttl_s: float,
        look_s: float = LOOK_S,
    ) -> None:
        self._book = book
        self._clock = clock
        self._streams = streams
        self._look_s = look_s
        self._forgotten_after_s = _TERMS_UNTIL_FORGOTTEN * lease_ttl_s
        #: By runner: what another control plane last wrote of it, and when that was seen to be new.
        self._others: dict[str, tuple[NodeView, float]] = {}
        #: Of the others', what was last told of.
        self._shown: set[NodeView | None] = set()
        self._placed: Mapping[str, tuple[Placed, ...]] = {}
        #: By runner: what was last written of it here.
        self._written: dict[str, NodeView] = {}
        #: Held while what is to run is written or read, and until it is handed out.
        self._placing = asyncio.Lock()
        self._wake = asyncio.Event()
        self._listeners: list[Callable[[], None]] = []
        streams.on_nodes_changed(self._own_changed)
        book.ledger.on_nodes(self._wake.set)

    def __repr__(self) -> str:
        return f"<Registry nodes={len(self.nodes())} others={len(self._others)}>"

    def nodes(self) -> Sequence[NodeView]:
        """Every node known, those that lost their connection included; cheap, reads memory."""
        here = self._book.control_plane
        found = {n.runner_id: replace(n, control_plane=here) for n in self._streams.nodes()}
        for other in self._others_now():
            own = found.get(other.runner_id)
            if own is None or not own.connected:
                found[other.runner_id] = other
        return sorted(found.values(), key=lambda each: (each.node, each.runner_id))

    def placed(self) -> Mapping[str, Sequence[Placed]]:
        """What every runner is to run, as far as it was decided."""
        return self._placed

    def on_nodes_changed(self, listener: Callable[[], None]) -> None:
        """``listener()`` is called when a runner or a replica came, went or changed its state."""
        self._listeners.append(listener)

    async def place(self, epoch: int, wanted: Mapping[str, Sequence[Placed]]) -> bool:
        """Have every runner run exactly these replicas; False when another decides by now.

        Raises:
            StoreUnavailable: whether it was written is unknown; nobody here is told yet.
        """
        given = {runner_id: tuple(placed) for runner_id, placed in wanted.items()}
        async with self._placing:
            if given != self._placed and not await self._book.place(epoch, given):
                return False
            self._hand_out(given)
        return True

    async def open(self) -> None:
        """Read what was known before; call it before runners can connect.

        Raises:
            StoreUnavailable: the store refused.
        """
        await self._look()

    async def run(self) -> None:
        """Write and read until cancelled."""
        while True:
            is_due = True
            # Not wait_for: on Python 3.11 it swallows a cancel that comes with the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._look_s):
                    await self._wake.wait()
                    is_due = False
            self._wake.clear()
            try:
                await self._write(is_due=is_due)
                if self._book.is_shared:
                    await self._look()
            except StoreUnavailable as error:
                log.warning("store_refused", error=str(error))
                await asyncio.sleep(_STORE_PAUSE_S)
                self._wake.set()

    # -- this control plane's own

    def _own_changed(self) -> None:
        self._wake.set()
        self._tell_changed()

    async def _write(self, *, is_due: bool) -> None:
        """Write what has changed of this control plane's runners; when due, all that is new."""
        own = {each.runner_id: each for each in self._streams.nodes()}
        news = [each for each in own.values() if _settled(each) != self._last_written(each)]
        new = [n for n in own.values() if n != self._written.get(n.runner_id)] if is_due else news
        if new:
            superseded = set(await self._book.report(new, is_news=bool(news)))
            for each in new:
                if each.runner_id in superseded:
                    self._streams.dismiss(each.runner_id, each.fence, _ELSEWHERE)
        written = {**self._written, **{each.runner_id: each for each in new}}
        self._written = {key: each for key, each in written.items() if key in own}

    def _last_written(self, view: NodeView) -> NodeView | None:
        last = self._written.get(view.runner_id)
        return None if last is None else _settled(last)

    # -- what others have written

    async def _look(self) -> None:
        """Read it, and hand out what was decided."""
        async with self._placing:
            registrations, placed = await self._book.read()
            self._hand_out(placed)
        here, now = self._book.control_plane, self._clock.monotonic()
        others = [each for each in registrations if each.control_plane != here]
        self._others = {each.runner_id: (each, self._seen_at(each, now)) for each in others}
        fences = {n.runner_id: n.fence for n in self._streams.nodes() if n.connected}
        for each in others:
            if each.fence > fences.get(each.runner_id, each.fence):
                self._streams.dismiss(each.runner_id, fences[each.runner_id], _ELSEWHERE)
        before, self._shown = self._shown, {_settled(each) for each in self._others_now()}
        if before != self._shown:
            self._tell_changed()

    def _seen_at(self, view: NodeView, now: float) -> float:
        """When it was first seen that its runner has spoken as late as that."""
        known, seen_at = self._others.get(view.runner_id, (None, now))
        is_new = known is None or (known.fence, known.heard_at) != (view.fence, view.heard_at)
        return now if is_new else seen_at

    def _others_now(self) -> list[NodeView]:
        """Runners of other control planes that are connected, or were a short while ago."""
        now, silent_s = self._clock.monotonic(), _SILENT_LOOKS * self._look_s
        heard_since = self._clock.now() - self._forgotten_after_s
        found = []
        for view, seen_at in self._others.values():
            # Where there is one control plane, an earlier one is gone.
            if view.connected and self._book.is_shared and now - seen_at < silent_s:
                found.append(view)
            elif view.heard_at >= heard_since:
                found.append(replace(view, connected=False))
        return found

    def _hand_out(self, placed: Mapping[str, tuple[Placed, ...]]) -> None:
        before, self._placed = self._placed, placed
        for runner_id in before.keys() - placed.keys():
            self._streams.want(runner_id, None)
        for runner_id, replicas in placed.items():
            self._streams.want(runner_id, replicas)

    def _tell_changed(self) -> None:
        for listener in self._listeners:
            listener()


def _settled(view: NodeView) -> NodeView:
    """The view without what changes from one heartbeat to the next."""
    replicas = tuple(replace(r, in_flight=0, detail="", engine=None) for r in view.replicas)
    state = NodeState(torchserve=view.state.torchserve)
    holdings = tuple(HoldingView(each.model, each.state, 0, 0) for each in view.holdings)
    return replace(
        view,
        replicas=replicas,
        state=state,
        holdings=holdings,
        heard_at=0.0,
        clock_skew_s=None,
    )
