"""Draws what the ways did over AIBrix's steps, and what it cost, from the data that is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.scaling.traces import STEP_S, STEPS


def draw(data: Path, picture: Path) -> None:
    """``data`` as ``__main__`` writes it."""
    import matplotlib as mpl

    mpl.use("svg")
    # So that a picture of the same data is the same file.
    mpl.rcParams["svg.hashsalt"] = "plait"
    from matplotlib import pyplot

    document: dict[str, Any] = json.loads(data.read_text())
    figure, (story, cost) = pyplot.subplots(
        1, 2, figsize=(11, 4.5), width_ratios=(3, 2), layout="constrained"
    )
    for way, told in document["stories"].items():
        story.step([t for t, *_ in told], [n for _, n, *_ in told], where="post", label=way)
    edges = [STEP_S * i for i in range(len(STEPS) + 1)]
    story.stairs(STEPS, edges, color="gray", alpha=0.4, fill=True, label="requests a second")
    story.set_xlabel("seconds (one run; replicas start in 60 s)")
    story.set_ylabel("replicas wanted")
    story.legend()
    steps = [o for o in document["outcomes"] if o["trace"] == "steps"]
    for way in dict.fromkeys(o["way"] for o in steps):
        own = [o for o in steps if o["way"] == way]
        marker = "o" if way.startswith("Plait") else "x"
        events, waits = [o["num_events"] for o in own], [o["p95_s"] for o in own]
        hours = [20 * o["replica_hours"] for o in own]
        cost.scatter(events, waits, s=hours, marker=marker, label=way)
    cost.set_xlabel("scale events in 30 minutes (mean of all seeds)")
    cost.set_ylabel("p95 wait, seconds (area: replica-hours; starts of 60 and 120 s)")
    cost.legend(fontsize="small")
    figure.savefig(picture, metadata={"Date": None})
