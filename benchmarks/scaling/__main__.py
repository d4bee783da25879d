"""Does a model get its replicas in time, and not more often than it has to?

    make bench-scaling                       # about six minutes
    make bench-scaling ARGS="--seeds 1"      # does it run?

Plait's scaler (the very decider that serves) and the Kubernetes HorizontalPodAutoscaler, each over
the same requests in virtual time: AIBrix's steps and five other shapes of load, with replicas that
take a while to start, are of two speeds, and die. Nothing is measured on this machine; the same
seeds give the same table anywhere.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Final, Protocol

from benchmarks.report import Figure, Report
from benchmarks.scaling import picture
from benchmarks.scaling.pool import SLOTS, Pool, percentile
from benchmarks.scaling.traces import TRACES, Trace
from benchmarks.scaling.ways import hpa, plait
from handlers.scale_section import Scale

RESULTS: Final = Path(__file__).parent / "results"
STARTS_S: Final = (60.0, 120.0)
LEAST, MOST, AT_FIRST = 1, 40, 2
OURS, OURS_SLOW = "Plait", "Plait, 20 s aimed at"


class Way(Protocol):
    """Whoever says how many replicas there should be."""

    period_s: float
    grace_s: float | None

    def watch(self, pool: Pool) -> None: ...

    def wanted(self, pool: Pool) -> int: ...


def _hpa(part: float) -> Callable[[], Way]:
    return lambda: hpa.Way(part * SLOTS, LEAST, MOST)


#: The HPA's target is a part of the slots of a pod; 0.8 is what the others are compared with.
HPAS: Final = {part: f"HPA, {part:.0%} of its slots" for part in (0.6, 0.8, 1.0)}
USUAL: Final = HPAS[0.8]
WAYS: Final[Mapping[str, Callable[[], Way]]] = {
    OURS: lambda: plait.Way(Scale(max=MOST, min=LEAST)),
    OURS_SLOW: lambda: plait.Way(Scale(max=MOST, min=LEAST, target_wait_s=20.0)),
    **{name: _hpa(part) for part, name in HPAS.items()},
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One way over one load, in the mean of all seeds."""

    trace: str
    start_s: float
    way: str
    num_events: float
    num_ups: float
    p50_s: float
    p95_s: float
    replica_hours: float
    #: Answers that were cut because their replica went.
    num_cut: float


def main() -> int:
    options = _options()
    report = Report("bench-scaling")
    outcomes: list[Outcome] = []
    for start_s in STARTS_S:
        for trace in TRACES:
            some = [_outcome(trace, start_s, way, options.seeds) for way in WAYS]
            outcomes += some
            _table(report, trace, start_s, some)
    _judge(report, outcomes)
    document = {
        "seeds": options.seeds,
        "outcomes": [asdict(each) for each in outcomes],
        "stories": {way: _story(way) for way in (OURS, USUAL)},
        **report.to_document(),
    }
    options.results.mkdir(parents=True, exist_ok=True)
    data = options.results / "scaling.json"
    data.write_text(json.dumps(document, indent=1) + "\n")
    picture.draw(data, options.results / "scaling.svg")
    print(report.line())
    return 0


def run(
    trace: Trace, start_s: float, way: Way, seed: int, look: Callable[[Pool], None] | None = None
) -> Pool:
    """One way over one load; ``look`` is called after every decision."""
    pool = Pool(trace, seed, start_s, way.grace_s)
    pool.begin(AT_FIRST)
    for second in range(1, int(trace.seconds) + 1):
        pool.run_until(second)
        way.watch(pool)
        if second % way.period_s == 0:
            pool.want(way.wanted(pool))
            if look is not None:
                look(pool)
    pool.finish()
    return pool


def _outcome(trace: Trace, start_s: float, way: str, num_seeds: int) -> Outcome:
    tallies = [run(trace, start_s, WAYS[way](), seed).tally for seed in range(num_seeds)]
    return Outcome(
        trace.name,
        start_s,
        way,
        num_events=mean(tally.num_events for tally in tallies),
        num_ups=mean(tally.num_ups for tally in tallies),
        p50_s=mean(percentile(tally.waits_s, 0.5) for tally in tallies),
        p95_s=mean(percentile(tally.waits_s, 0.95) for tally in tallies),
        replica_hours=mean(tally.replica_s for tally in tallies) / 3600,
        num_cut=mean(tally.num_cut for tally in tallies),
    )


def _story(way: str) -> list[tuple[float, int, int, int]]:
    """Moment, replicas wanted and ready, and requests that wait, over AIBrix's steps."""
    told: list[tuple[float, int, int, int]] = []

    def look(pool: Pool) -> None:
        told.append((pool.now, pool.num_wanted, len(pool.ready), len(pool.queue)))

    run(TRACES[0], STARTS_S[0], WAYS[way](), 0, look)
    return told


def _table(report: Report, trace: Trace, start_s: float, some: Sequence[Outcome]) -> None:
    columns = ("way", "scale events", "of these up", "p95 wait", "replica-hours", "answers cut")
    rows = [
        (
            each.way,
            f"{each.num_events:.1f}",
            f"{each.num_ups:.1f}",
            f"{each.p95_s:.1f} s",
            f"{each.replica_hours:.1f}",
            f"{each.num_cut:.1f}",
        )
        for each in some
    ]
    report.table(f"{trace.name}, replicas start in {start_s:.0f} s", columns, rows)


def _judge(report: Report, outcomes: Sequence[Outcome]) -> None:
    """On AIBrix's steps: fewer events than the HPA at no worse a wait, and no answer cut."""
    for start_s in STARTS_S:
        found = {o.way: o for o in outcomes if o.trace == "steps" and o.start_s == start_s}
        ours, usual = found[OURS], found[USUAL]
        when = f"on steps with starts of {start_s:.0f} s"
        events = ours.num_events / usual.num_events
        wait = ours.p95_s / usual.p95_s
        report.figure(Figure(f"scale events, of the HPA's, {when}", events, 1.0, is_cost=True))
        report.figure(Figure(f"p95 wait, of the HPA's, {when}", wait, 1.0, is_cost=True))
    num_cut = sum(o.num_cut for o in outcomes if o.way == OURS)
    report.figure(Figure("answers cut by Plait, over all loads", num_cut, 0.0, is_cost=True))


def _options() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=6, help="runs of each way over each load")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where data and picture go")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
