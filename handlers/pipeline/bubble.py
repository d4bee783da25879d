"""How long the stages of a pipeline stand idle, in theory.

A *lane* is a set of rows that is in the pipeline as one step at a time: its next step can begin
only when its last one has left the last stage and the way back. With M lanes over stages that
take t_1 … t_S seconds, the lanes come round once in

    cycle = max(M · max t_i, Σ t_i + latency)

because the slowest stage works on the lanes one after another, and no lane is faster than its own
way through. In a cycle each stage works M · t_i seconds; what is left is the *bubble*. One lane
idles (S - 1) / S of the stages, as many lanes as equal stages none, which is GPipe's
(S - 1) / (M + S - 1) (Huang et al. 2019) for a pipeline that never drains.
"""

from __future__ import annotations

from collections.abc import Sequence


def cycle_s(seconds: Sequence[float], num_lanes: float, latency_s: float = 0.0) -> float:
    """Seconds in which every lane makes one step.

    Args:
        seconds: of each stage for one step.
        num_lanes: in use; a mean over time need not be a whole number.
        latency_s: of all links of a round, the way from the last stage to the first included.
    """
    return max(num_lanes * max(seconds), sum(seconds) + latency_s)


def idle_share(seconds: Sequence[float], num_lanes: float, latency_s: float = 0.0) -> float:
    """The share of all stages' time in which they have nothing to do, 0 to 1."""
    whole = len(seconds) * cycle_s(seconds, num_lanes, latency_s)
    return 1.0 - num_lanes * sum(seconds) / whole if whole else 0.0
