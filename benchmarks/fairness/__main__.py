"""Is my small request quick while a colleague floods the model?

    make bench-fairness                          # about six minutes
    make bench-fairness ARGS="--seconds 20"      # does it run?

A light tenant asks for 16 tokens once a second, alone at first; then another asks for 128 tokens
ten times a second, which is more than the model can do. The same through Plait with its fairness
policy, through Plait first come first served, and straight to TorchServe, each started anew with
the demo model. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

from benchmarks.fairness import figures, picture, systems
from benchmarks.fairness.figures import Outcome, percentile
from benchmarks.fairness.load import FLOOD, LIGHT, Answer, Load, run
from benchmarks.fairness.systems import Way

FAIR, FCFS, PLAIN = "Plait", "Plait, first come first served", "TorchServe"
WAYS = (FAIR, FCFS, PLAIN)
LIGHT_LOAD, FLOOD_LOAD = Load(LIGHT, 1.0, 16), Load(FLOOD, 0.1, 128)
QUIET_S, RISE_S = 30.0, 10.0
GOAL_RATIO, GOAL_SHARE = 1.5, 0.97
RESULTS = Path(__file__).parent / "results"


def main() -> int:
    options = _options()
    until_s = QUIET_S + RISE_S + options.seconds
    outcomes: dict[str, Outcome] = {}
    kept: dict[str, list[Answer]] = {}
    for name in options.ways:
        with (
            tempfile.TemporaryDirectory(prefix="plait-fairness-") as folder,
            _way(name, Path(folder)) as way,
        ):
            kept[name] = asyncio.run(_measure(way, until_s))
        outcomes[name] = figures.read(kept[name], QUIET_S, QUIET_S + RISE_S, until_s)
        print(_row(name, outcomes[name]), flush=True)
    if set(outcomes) != set(WAYS):
        return 0
    _keep(options.results, kept, outcomes, until_s)
    ratio = outcomes[FAIR].ratio
    share = outcomes[FAIR].tokens_per_s / outcomes[FCFS].tokens_per_s
    print(
        f"bench-fairness: light tenant's p99 time to first token {ratio:.2f}x its quiet value "
        f"(goal <= {GOAL_RATIO}: {_verdict(ratio <= GOAL_RATIO)}) | tokens/s {share:.1%} of first "
        f"come first served (goal >= {GOAL_SHARE:.0%}: {_verdict(share >= GOAL_SHARE)})"
    )
    return 0


def _way(name: str, folder: Path) -> AbstractContextManager[Way]:
    if name == PLAIN:
        return systems.torchserve(name, folder)
    return systems.plait(name, folder, "fcfs" if name == FCFS else "virtual_time")


async def _measure(way: Way, until_s: float) -> list[Answer]:
    # What starts slowly the first time (connections, shapes) is not what is asked here.
    await run(way, {LIGHT_LOAD: (0.0, 3.0), FLOOD_LOAD: (0.0, 2.0)}, 10.0)
    return await run(way, {LIGHT_LOAD: (0.0, until_s), FLOOD_LOAD: (QUIET_S, until_s)}, until_s)


def _row(name: str, got: Outcome) -> str:
    quiet, flooded = percentile(got.quiet_s, 0.99), percentile(got.flooded_s, 0.99)
    half = percentile(got.flooded_s, 0.5)
    return (
        f"| {name} | {quiet:.3f} s | {half:.3f} s | {flooded:.3f} s | {got.ratio:.2f} | "
        f"{got.num_unanswered} | {got.tokens_per_s:.0f} |"
    )


def _keep(
    folder: Path, kept: dict[str, list[Answer]], outcomes: dict[str, Outcome], until_s: float
) -> None:
    """The data, and the picture of it."""
    ways = {
        name: {
            **asdict(outcomes[name]),
            "answers": [
                {"tenant": each.tenant, "sent_s": round(each.sent_s, 3), "ttft_s": each.ttft_s}
                for each in answers
            ],
        }
        for name, answers in kept.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    document = {"flood_from_s": QUIET_S, "until_s": until_s, "ways": ways}
    (folder / "fairness.json").write_text(json.dumps(document, indent=1) + "\n")
    picture.draw(folder / "fairness.json", folder / "fairness.svg")


def _verdict(is_met: bool) -> str:
    return "met" if is_met else "MISSED"


def _options() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fairness",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="of flood that are measured")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="some of them")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where data and picture go")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
