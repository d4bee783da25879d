"""Draws a run: load, work done, what was up, and every fault, over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def draw(document: Mapping[str, Any], picture: Path) -> None:
    """``document`` as :func:`scheduler.testing.chaos.report.summary` makes it."""
    import matplotlib as mpl

    mpl.use("svg")
    # So that a picture of the same data is the same file.
    mpl.rcParams["svg.hashsalt"] = "plait"
    # Text as text: the letters drawn as curves would be most of the file.
    mpl.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot

    series, bucket_s = document["series"], document["bucket_s"]
    minutes = [place * bucket_s / 60 for place in range(len(series["sent_per_s"]))]
    figure, (work, waiting, up, faults) = pyplot.subplots(
        4, 1, figsize=(12, 11), sharex=True, height_ratios=(3, 2, 2, 4), layout="constrained"
    )
    work.step(minutes, series["sent_per_s"], where="post", label="tasks sent", linewidth=1)
    work.step(minutes, series["ended_per_s"], where="post", label="tasks done", linewidth=1)
    work.set_ylabel("a second")
    waiting.plot(minutes, _known(series["tasks_queued"]), label="queued", linewidth=1)
    waiting.plot(minutes, _known(series["tasks_in_flight"]), label="in flight", linewidth=1)
    waiting.set_ylabel("tasks")
    up.step(minutes, series["nodes_whole"], where="post", label="nodes whole", linewidth=1)
    connected = _known(series["runners_connected"])
    up.step(minutes, connected, where="post", label="runners connected", linewidth=1)
    up.step(minutes, _known(series["replicas_ready"]), where="post", label="replicas ready", lw=1)
    up.set_ylabel(f"of {document['nodes']}")
    _draw_faults(faults, document["faults"])
    for axes in (work, waiting, up):
        _shade(axes, minutes, series["control_plane_up"], bucket_s / 60)
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper right")
    faults.set_xlabel("minutes; shaded: the control plane does not answer")
    figure.savefig(picture, metadata={"Date": None})
    pyplot.close(figure)


def _draw_faults(axes: Any, faults: Sequence[Sequence[Any]]) -> None:
    """A row for each kind: a mark where it struck, a bar for as long as it lasted."""
    kinds = sorted({kind for _, _, kind, _ in faults}, reverse=True)
    for row, kind in enumerate(kinds):
        spans = [(at / 60, (until - at) / 60) for at, until, each, _ in faults if each == kind]
        axes.broken_barh(spans, (row - 0.35, 0.7), alpha=0.4)
        axes.plot([at for at, _ in spans], [row] * len(spans), "|", color="black", markersize=5)
    axes.set_yticks(range(len(kinds)), kinds, fontsize=8)


def _shade(
    axes: Any, minutes: Sequence[float], is_up: Sequence[float | None], width: float
) -> None:
    for minute, up in zip(minutes, is_up, strict=True):
        if up is not None and up < 1:
            axes.axvspan(minute, minute + width, alpha=0.25 * (1 - up), color="red", linewidth=0)


def _known(values: Sequence[float | None]) -> list[float]:
    """Not a number where nothing is known: a line has a gap there."""
    return [float("nan") if value is None else value for value in values]
