"""(b) Two ranks of one thread against twice one rank of one thread, and the bubble.

Every lane has the same number of rows as the single rank, so each stage multiplies batches of the
same size. The bubble is the share of the time in which the stages' processes had no processor:
with one thread each they compute or sleep. The theory (``handlers/pipeline/bubble.py``) is that of
as many lanes over stages that are as busy as these were: a layer is the least that can be moved
from one to the other, so no two are quite equal.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

from benchmarks.engine.bench import Bench
from benchmarks.engine.figures import Outcome
from benchmarks.report import Figure, percent, rate
from handlers.pipeline.bubble import idle_share

NUM_STAGES = 2
LANES = (1, 2, 4)
MAIN_LANES = (NUM_STAGES,)
GOAL_EFFICIENCY, GOAL_BUBBLE_POINTS = 0.9, 5.0
COLUMNS = (
    "ranks", "lanes", "rows", "decode tok/s", "of one rank", "efficiency", "busy, each stage",
    "bubble", "theory", "noise", "spread", "same tokens",
)  # fmt: skip


def run(bench: Bench, dtype: str, lanes: tuple[int, ...] = LANES) -> None:
    per_lane = bench.sizes.rows_per_lane
    one = bench.settings(dtype, num_threads=1, max_batch=per_lane, num_lanes=1)
    wanted = {"one": ("plait", one)}
    for num in lanes:
        more = {"num_stages": NUM_STAGES, "max_batch": num * per_lane, "num_lanes": num}
        wanted[f"{num}"] = ("plait", bench.settings(dtype, num_threads=1, **more))
    jobs = bench.jobs(per_lane * max(lanes), dtype)
    with bench.hosts(wanted) as hosts:
        entries = {label: (host, jobs[: host.settings.max_batch]) for label, host in hosts.items()}
        outcomes = bench.contest(entries)
    one_rank = outcomes["one"]
    rows = [_row(bench, dtype, label, got, one_rank) for label, got in outcomes.items()]
    title = f"(b) {dtype}: ranks of one thread, {per_lane} rows a lane"
    bench.report.table(title, COLUMNS, rows)
    got, goals = outcomes[str(NUM_STAGES)], (GOAL_EFFICIENCY, GOAL_BUBBLE_POINTS)
    efficiency = _efficiency(got, one_rank)
    points = 100 * abs(_bubble(got) - idle_share(got.stage_busy, NUM_STAGES))
    judged = goals if dtype == "float32" else (None, None)
    name = f"(b) {dtype} {NUM_STAGES} ranks,"
    bench.report.figure(Figure(f"{name} efficiency", efficiency, judged[0]))
    off = Figure(f"{name} bubble off theory", points, judged[1], True, " points")
    bench.report.figure(off)


def _efficiency(got: Outcome, one_rank: Outcome) -> float:
    return got.rate / one_rank.rate / NUM_STAGES


def _bubble(got: Outcome) -> float:
    """Share of the stages' time, start of decoding to its end, in which they had no processor."""
    return 1.0 - fmean(got.stage_busy)


def _row(bench: Bench, dtype: str, label: str, got: Outcome, one_rank: Outcome) -> list[object]:
    num_lanes, num_stages = (1, 1) if label == "one" else (int(label), NUM_STAGES)
    per_lane = bench.sizes.rows_per_lane
    comparable = replace(got, tokens=got.tokens[:per_lane])
    return [
        num_stages,
        num_lanes,
        num_lanes * per_lane,
        rate(got.rate),
        f"{got.rate / one_rank.rate:.2f}",
        f"{got.rate / one_rank.rate / num_stages:.2f}",
        " ".join(map(percent, got.stage_busy)),
        percent(_bubble(got)),
        percent(idle_share(got.stage_busy, num_lanes)),
        percent(got.noise_ratio),
        percent(got.spread_ratio),
        bench.equal(f"(b) {label}", dtype, comparable, one_rank.tokens),
    ]
