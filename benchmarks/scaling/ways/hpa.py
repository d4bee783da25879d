"""The Kubernetes HorizontalPodAutoscaler, as its documentation describes it.

https://kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale/ , with the
defaults of autoscaling/v2:

- every 15 s, ``desired = ceil(current * metric / target)``; nothing changes while the ratio is
  within 0.1 of 1;
- a pods metric is averaged over the pods that show it. Before a step up, those that do not count as
  using nothing, before a step down as using all of their target; if that turns the direction round,
  nothing changes. A pod that is loading its model shows none;
- up: no stabilization window, at most doubled or four more in 15 s, whichever is more; down: the
  greatest recommendation of the last 300 s;
- a pod that has to go has 30 s (terminationGracePeriodSeconds), and is killed then.

The metric is what the field recommends for model servers: requests running and waiting, of each
pod. The queue is one for all here, so each ready pod shows its part of it.
"""

from __future__ import annotations

from math import ceil

from benchmarks.scaling.pool import Pool

TOLERANCE = 0.1
DOWN_WINDOW_S = 300.0


class Way:
    """Looks every fifteen seconds."""

    period_s = 15.0
    grace_s: float | None = 30.0

    def __init__(self, target: float, least: int, most: int) -> None:
        """``target``: requests that a pod should have, running and waiting."""
        self._target, self._least, self._most = target, least, most
        self._recommended: list[tuple[float, int]] = []
        self._changes: list[tuple[float, int]] = []

    def watch(self, pool: Pool) -> None:
        """It measures nothing by itself."""

    def wanted(self, pool: Pool) -> int:
        current = pool.num_wanted
        found = self._of_pods(pool)
        raw = current if found is None else found
        raw = max(self._least, min(raw, self._most))
        self._recommended = [r for r in self._recommended if r[0] > pool.now - DOWN_WINDOW_S]
        self._recommended.append((pool.now, raw))
        if raw < current:
            raw = min(current, max(num for _, num in self._recommended))
        elif raw > current:
            added = sum(n for at, n in self._changes if at > pool.now - self.period_s and n > 0)
            base = current - added
            raw = min(raw, max(2 * base, base + 4))
        if raw != current:
            self._changes.append((pool.now, raw - current))
        return raw

    def _of_pods(self, pool: Pool) -> int | None:
        """Pods there should be; None: as many as there are."""
        ready, num_missing = pool.ready, len(pool.starting)
        if not ready:
            return None  # no metric at all
        part = len(pool.queue) / len(ready)
        total = sum(len(replica.running) + part for replica in ready)
        ratio = total / (self._target * len(ready))
        num_counted = len(ready) + num_missing
        if num_missing:
            is_up = ratio > 1
            total += 0 if is_up else self._target * num_missing
            ratio = total / (self._target * num_counted)
            if (ratio > 1) is not is_up:
                return None
        return None if abs(ratio - 1) <= TOLERANCE else ceil(ratio * num_counted)
