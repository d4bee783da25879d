"""Draws the light tenant's waits over time, one line for each way, from the data that is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.fairness.load import LIGHT


def draw(data: Path, picture: Path) -> None:
    """``data`` as ``__main__`` writes it."""
    import matplotlib as mpl

    mpl.use("svg")
    # So that a picture of the same data is the same file.
    mpl.rcParams["svg.hashsalt"] = "plait"
    from matplotlib import pyplot

    document: dict[str, Any] = json.loads(data.read_text())
    figure, (waits, rates) = pyplot.subplots(
        1, 2, figsize=(10, 4), width_ratios=(3, 1), layout="constrained"
    )
    for name, way in document["ways"].items():
        light = [each for each in way["answers"] if each["tenant"] == LIGHT and each["ttft_s"]]
        moments = [each["sent_s"] for each in light]
        waits.plot(moments, [each["ttft_s"] for each in light], ".-", label=name, linewidth=1)
    waits.axvspan(document["flood_from_s"], document["until_s"], alpha=0.08)
    waits.set_yscale("log")
    waits.set_xlabel("request sent, seconds (shaded: the other tenant floods)")
    waits.set_ylabel("light tenant's time to first token, seconds")
    waits.legend()
    names = list(document["ways"])
    rates.bar(range(len(names)), [document["ways"][name]["tokens_per_s"] for name in names])
    rates.set_xticks(range(len(names)), names, rotation=30, ha="right")
    rates.set_ylabel("tokens a second, both tenants, in the flood")
    figure.savefig(picture, metadata={"Date": None})
