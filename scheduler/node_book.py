"""What is written about nodes: who is there, what each is to run, and which control plane decides.

A runner speaks to one control plane at a time, but the one it left may not have noticed yet. So
each stream gets a number, its *fence*, greater than those of all streams of that runner before it,
and what was heard on an earlier one is not written any more. In the same way everything the leader
decides carries its epoch, and is not written once another has taken over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Final

from scheduler.cluster_view import (
    DeviceView,
    HoldingView,
    NodeState,
    NodeView,
    Placed,
    ReplicaView,
    TorchServeView,
)
from scheduler.ledger import Ledger
from scheduler.records import changed
from scheduler.registration import Leadership, Placement, Registration
from scheduler.stores.base import News, Transaction

_ROLE: Final = "sidecar"


class NodeBook:
    """The nodes in the store, as one control plane reads and writes them."""

    def __init__(self, ledger: Ledger, control_plane: str) -> None:
        """``control_plane``: this one's name, which no other and no earlier one has."""
        self.ledger = ledger
        self.control_plane = control_plane
        #: Whether other control planes may be there.
        self.is_shared = ledger.store.is_shared

    def __repr__(self) -> str:
        return f"<NodeBook {self.control_plane} {self.ledger.store!r}>"

    # -- registrations

    async def arrive(self, view: NodeView) -> int:
        """Register a runner that has opened a stream; the stream's fence.

        Raises:
            StoreUnavailable: whether it is registered is unknown.
        """

        def command(tx: Transaction) -> int:
            before = tx.registration(view.runner_id)
            fence = 1 if before is None else before.fence + 1
            tx.put_registration(_registration(replace(view, fence=fence), self.control_plane))
            tx.tell(News((), has_nodes=True))
            return fence

        return await self.ledger.store.run(command)

    async def report(self, views: Sequence[NodeView], *, is_news: bool) -> list[str]:
        """Write how runners stand whose stream is, or was, here; those that have opened a newer one
        since, whose registration is left as it is. ``is_news``: others are to look at once."""

        def command(tx: Transaction) -> list[str]:
            fences = {each.runner_id: each.fence for each in tx.registrations()}
            current = [view for view in views if fences.get(view.runner_id) == view.fence]
            for view in current:
                tx.put_registration(_registration(view, self.control_plane))
            if current and is_news:
                tx.tell(News((), has_nodes=True))
            return [v.runner_id for v in views if fences.get(v.runner_id, v.fence) > v.fence]

        return await self.ledger.store.run(command)

    async def read(self) -> tuple[list[NodeView], dict[str, tuple[Placed, ...]]]:
        """Every registration, and what each runner is to run, at one moment."""
        registrations, placements = await self.ledger.store.read(
            lambda tx: (tx.registrations(), tx.placements())
        )
        return (
            [_view(each) for each in registrations],
            {each.runner_id: _placed(each.replicas) for each in placements},
        )

    async def forget(self, heard_before: float) -> None:
        """Remove registrations of runners that were last heard of before a moment."""

        def old(tx: Transaction) -> list[str]:
            return [r.runner_id for r in tx.registrations() if r.heard_at < heard_before]

        def command(tx: Transaction) -> None:
            for runner_id in old(tx):
                tx.delete_registration(runner_id)

        if await self.ledger.store.read(old):
            await self.ledger.store.run(command)

    # -- who decides, and what

    async def leadership(self) -> Leadership:
        """Who decides now."""
        return await self.ledger.store.read(lambda tx: tx.leadership(_ROLE))

    async def lead(self, seen: Leadership) -> Leadership:
        """Take over from who was ``seen``, or show that this control plane still lives if that was
        itself; who decides now. If it is no longer as it was seen, nothing changes."""

        def command(tx: Transaction) -> Leadership:
            current = tx.leadership(_ROLE)
            if current != seen:
                return current
            if current.holder == self.control_plane:
                current = changed(current, num_beats=current.num_beats + 1)
            else:
                current = Leadership(_ROLE, self.control_plane, current.epoch + 1)
            tx.put_leadership(current)
            return current

        return await self.ledger.store.run(command)

    async def resign(self) -> None:
        """Let another decide at once, if this control plane does."""

        def command(tx: Transaction) -> None:
            current = tx.leadership(_ROLE)
            if current.holder == self.control_plane:
                tx.put_leadership(changed(current, holder=""))
                tx.tell(News((), has_desired=True))

        await self.ledger.store.run(command)

    async def place(self, epoch: int, wanted: Mapping[str, Sequence[Placed]]) -> bool:
        """Write what every runner is to run, whole; False when another decides by now, and nothing
        is written."""

        def command(tx: Transaction) -> bool:
            leader = tx.leadership(_ROLE)
            if (leader.holder, leader.epoch) != (self.control_plane, epoch):
                return False
            before = {each.runner_id: each.replicas for each in tx.placements()}
            after = {runner_id: _to_json(placed) for runner_id, placed in wanted.items()}
            for runner_id in before.keys() - after.keys():
                tx.delete_placement(runner_id)
            new = [each for each in after.items() if before.get(each[0]) != each[1]]
            for runner_id, replicas in new:
                tx.put_placement(Placement(runner_id, epoch, replicas))
            if new or before.keys() - after.keys():
                tx.tell(News((), has_nodes=True))
            return True

        return await self.ledger.store.run(command)


# -- records and views


def _registration(view: NodeView, control_plane: str) -> Registration:
    return Registration(
        runner_id=view.runner_id,
        fence=view.fence,
        control_plane=control_plane,
        is_connected=view.connected,
        connected_at=view.connected_at,
        heard_at=view.heard_at,
        node=view.node,
        host=view.host,
        provider=view.provider,
        container=view.container,
        version=view.version,
        num_devices=view.num_devices,
        device_kind=view.device_kind,
        models=_dump(view.models),
        replicas=_to_json(view.replicas),
        state=_dump(asdict(view.state)),
        holdings=_to_json(view.holdings),
    )


def _view(registration: Registration) -> NodeView:
    models = json.loads(registration.models)
    return NodeView(
        node=registration.node,
        runner_id=registration.runner_id,
        connected=registration.is_connected,
        num_devices=registration.num_devices,
        replicas=tuple(_replica(each) for each in json.loads(registration.replicas)),
        device_kind=registration.device_kind,
        host=registration.host,
        provider=registration.provider,
        container=registration.container,
        version=registration.version,
        models=None if models is None else tuple(models),
        state=_state(json.loads(registration.state)),
        holdings=tuple(HoldingView(**each) for each in json.loads(registration.holdings)),
        fence=registration.fence,
        control_plane=registration.control_plane,
        connected_at=registration.connected_at,
        heard_at=registration.heard_at,
    )


def _replica(document: dict[str, Any]) -> ReplicaView:
    return ReplicaView(**{**document, "device_ids": tuple(document["device_ids"])})


def _state(document: dict[str, Any]) -> NodeState:
    devices = tuple(DeviceView(**each) for each in document["devices"])
    torchserve = TorchServeView(**document["torchserve"])
    return NodeState(**{**document, "devices": devices, "torchserve": torchserve})


def _placed(replicas: str) -> tuple[Placed, ...]:
    found = json.loads(replicas)
    return tuple(Placed(**{**each, "device_ids": tuple(each["device_ids"])}) for each in found)


def _to_json(records: Sequence[ReplicaView] | Sequence[Placed] | Sequence[HoldingView]) -> str:
    return _dump([asdict(each) for each in records])


def _dump(document: object) -> str:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))
