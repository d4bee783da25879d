"""(d) The gap between two tokens of running requests while a long prompt arrives.

Both gaps are those of the same requests: before the long prompt is given, and from then until its
first token. The worst of a hundred gaps in company is compared with the middle of the quiet ones,
and told beside the worst of a hundred quiet ones.
"""

from __future__ import annotations

from statistics import median

from benchmarks.engine.bench import Bench
from benchmarks.engine.contenders.base import Job, Run
from benchmarks.engine.figures import Sample, gaps, percentile
from benchmarks.engine.measure import sample, warm_up
from benchmarks.engine.workload import equal_prompts
from benchmarks.report import Figure, percent

NUM_STAGES = 2
GOAL = 3.0
#: More than the running requests can have by the time the long prompt is through.
_ENDLESS_TOKENS = 512
COLUMNS = (
    "run", "quiet p50", "quiet p99", "p99 in company", "to quiet p50", "to quiet p99",
    "gaps counted", "long prompt's first token", "noise",
)  # fmt: skip


def run(bench: Bench, dtype: str) -> None:
    sizes = bench.sizes
    context = sizes.late_prompt + 2 * _ENDLESS_TOKENS
    more = {"num_threads": 1, "num_stages": NUM_STAGES, "max_context": context}
    settings = bench.settings(dtype, max_batch=sizes.main_batch + 1, **more)
    jobs = bench.jobs(sizes.main_batch, dtype, _ENDLESS_TOKENS)
    (long,) = equal_prompts(1, sizes.late_prompt, sizes.shape.vocab_size, seed=3)
    late = Job(tuple(long), 1, after_tokens=sizes.late_after)
    with bench.hosts({"plait": ("plait", settings)}) as hosts:
        hosts["plait"].run(warm_up(jobs))
        alone = hosts["plait"].run([Job(late.prompt, 1)]).arrivals[0][0]
        samples = [
            sample(hosts["plait"], [*jobs, late], bench.patience) for _ in range(bench.rounds)
        ]
    rows = [_row(number, each) for number, each in enumerate(samples, 1)]
    title = (
        f"(d) {dtype}: {sizes.main_batch} requests decode in {NUM_STAGES} ranks while a prompt of "
        f"{sizes.late_prompt} tokens arrives (alone it takes {alone:.1f} s)"
    )
    bench.report.table(title, COLUMNS, rows)
    quietest = min(samples, key=lambda each: each.noise_ratio)
    quiet, busy = _gaps(quietest.run)
    ratio = percentile(busy, 0.99) / median(quiet)
    name = f"(d) p99 gap beside {sizes.late_prompt} prompt tokens"
    bench.report.figure(Figure(name, ratio, GOAL, True, "x the quiet gap"))


def _gaps(run: Run) -> tuple[list[float], list[float]]:
    running = range(len(run.tokens) - 1)
    all_run = max(run.arrivals[job][0] for job in running)
    assert run.late_at_s is not None
    quiet = gaps(run, running, all_run, run.late_at_s)
    return quiet, gaps(run, running, run.late_at_s, run.arrivals[-1][0])


def _row(number: int, got: Sample) -> list[object]:
    quiet, busy = _gaps(got.run)
    worst, worst_quiet = percentile(busy, 0.99), percentile(quiet, 0.99)
    assert got.run.late_at_s is not None
    return [
        number,
        f"{1e3 * median(quiet):.0f} ms",
        f"{1e3 * worst_quiet:.0f} ms",
        f"{1e3 * worst:.0f} ms",
        f"{worst / median(quiet):.2f}",
        f"{worst / worst_quiet:.2f}",
        f"{len(quiet)} + {len(busy)}",
        f"{got.run.arrivals[-1][0] - got.run.late_at_s:.1f} s",
        percent(got.noise_ratio),
    ]
