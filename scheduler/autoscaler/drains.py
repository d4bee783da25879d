"""Decides when work on a replica that goes has had its time to finish.

Moments are handed in. A model without a section ``scale`` has no limit: its work finishes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from handlers.model_config import ModelConfig
from scheduler.cluster_view import NodeView, Placed


class Drains:
    """Replicas that should not run and still work, and since when."""

    def __init__(self, configs: Mapping[str, ModelConfig]) -> None:
        self._configs = configs
        self._since: dict[tuple[str, str], float] = {}

    def __repr__(self) -> str:
        return f"<Drains replicas={len(self._since)}>"

    def look(
        self, nodes: Sequence[NodeView], placing: Mapping[str, Sequence[Placed]], now: float
    ) -> list[tuple[str, str, str]]:
        """Those whose work is to be parked now: runner, replica, why."""
        before, self._since = self._since, {}
        over: list[tuple[str, str, str]] = []
        for node in nodes:
            wanted = {placed.name for placed in placing.get(node.runner_id, ())}
            for replica in node.replicas if node.connected else ():
                if replica.name in wanted or not replica.in_flight:
                    continue
                key = (node.runner_id, replica.name)
                since = self._since[key] = before.get(key, now)
                limit_s = self._limit_s(replica.model)
                if limit_s is not None and now - since >= limit_s:
                    over.append((*key, f"{replica.name} goes, and has drained for {limit_s:g} s"))
        return over

    def _limit_s(self, model: str) -> float | None:
        config = self._configs.get(model)
        return None if config is None or config.scale is None else config.scale.drain_s
