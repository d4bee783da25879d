"""Watches replicas start: which are ready, how old the others are, and how long starts took.

A start begins when a replica is placed and ends when its runner says that it is ready. One that was
ready when it was first seen tells nothing, and neither does one that comes back after a fault.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scheduler.autoscaler.scaling import Starting
from scheduler.cluster_view import READY, NodeView, Placed


@dataclass(slots=True)
class _Start:
    began_at: float
    #: Whether it has been ready since; what comes after is no first start.
    was_ready: bool = False
    is_ready: bool = False


class Starts:
    """Replicas that should run, and since when each is on its way."""

    def __init__(self) -> None:
        self._starts: dict[tuple[str, str], _Start] = {}

    def __repr__(self) -> str:
        return f"<Starts replicas={len(self._starts)}>"

    def look(
        self, nodes: Sequence[NodeView], placing: Mapping[str, Sequence[Placed]], now: float
    ) -> list[tuple[str, str, float]]:
        """Starts that have ended since the last look: model, kind of device, seconds."""
        kinds = {node.runner_id: node.device_kind for node in nodes}
        wanted = {(run, placed.name): placed for run, all_ in placing.items() for placed in all_}
        ended: list[tuple[str, str, float]] = []
        for key in [key for key in self._starts if key not in wanted]:
            del self._starts[key]
        ready = _ready(nodes)
        for key, placed in wanted.items():
            is_ready, start = key in ready, self._starts.get(key)
            if start is None:
                self._starts[key] = _Start(now, was_ready=is_ready, is_ready=is_ready)
                continue
            if is_ready and not start.was_ready:
                ended.append((placed.model, kinds.get(key[0], ""), now - start.began_at))
            if start.is_ready and not is_ready:
                start.began_at = now
            start.is_ready, start.was_ready = is_ready, start.was_ready or is_ready
        return ended

    def replicas(
        self,
        model: str,
        nodes: Sequence[NodeView],
        placing: Mapping[str, Sequence[Placed]],
        now: float,
    ) -> tuple[tuple[str, ...], tuple[Starting, ...]]:
        """Kinds of device of the model's replicas that take work, and those on their way."""
        kinds = {node.runner_id: node.device_kind for node in nodes}
        ready, starting = [], []
        for run, all_ in placing.items():
            for placed in all_:
                if placed.model != model:
                    continue
                start = self._starts.get((run, placed.name))
                if start is not None and start.is_ready:
                    ready.append(kinds.get(run, ""))
                else:
                    age_s = 0.0 if start is None else now - start.began_at
                    starting.append(Starting(kinds.get(run, ""), age_s))
        return tuple(ready), tuple(starting)


def _ready(nodes: Sequence[NodeView]) -> set[tuple[str, str]]:
    return {
        (node.runner_id, replica.name)
        for node in nodes
        if node.connected
        for replica in node.replicas
        if replica.state == READY
    }
