"""(a) One rank against ``generate`` on the same threads, and both against what is possible."""

from __future__ import annotations

from benchmarks.engine import limits
from benchmarks.engine.bench import Bench
from benchmarks.engine.figures import Outcome
from benchmarks.engine.limits import Machine
from benchmarks.report import Figure, percent, rate

GOAL = 1.4
COLUMNS = (
    "batch", "way", "decode tok/s", "of generate", "of the limit", "end to end tok/s",
    "of generate", "noise", "spread", "same tokens",
)  # fmt: skip


def run(bench: Bench, dtype: str) -> None:
    bench.patience.wait()
    machine = limits.measure_cpu(bench.num_threads, dtype)
    _tell_limits(bench, dtype, machine)
    most = max(bench.sizes.batches)
    wanted = {
        "generate": ("generate", bench.settings(dtype)),
        "plait": ("plait", bench.settings(dtype, max_batch=most)),
    }
    rows: list[list[object]] = []
    with bench.hosts(wanted) as hosts:
        for batch in bench.sizes.batches:
            jobs = bench.jobs(batch, dtype)
            outcomes = bench.contest({label: (host, jobs) for label, host in hosts.items()})
            for label, each in outcomes.items():
                rows.append(_row(bench, dtype, batch, label, each, outcomes["generate"], machine))
            if batch == bench.sizes.main_batch:
                ratio = outcomes["plait"].rate / outcomes["generate"].rate
                goal = GOAL if dtype == "float32" else None
                name = f"(a) {dtype} batch {batch} against generate"
                bench.report.figure(Figure(name, ratio, goal, unit="x"))
    title = f"(a) {dtype}: one rank with {bench.num_threads} threads against generate"
    bench.report.table(title, COLUMNS, rows)


def _row(
    bench: Bench, dtype: str, batch: int, label: str, got: Outcome, base: Outcome, machine: Machine
) -> list[object]:
    context = bench.mean_prompt(dtype) + bench.sizes.num_tokens / 2
    floor = limits.floor(bench.sizes.shape, dtype, batch, context, machine)
    return [
        batch,
        label,
        rate(got.rate),
        f"{got.rate / base.rate:.2f}",
        percent(got.rate * floor.seconds / batch),
        rate(got.end_to_end_rate),
        f"{got.end_to_end_rate / base.end_to_end_rate:.2f}",
        percent(got.noise_ratio),
        percent(got.spread_ratio),
        bench.equal(f"(a) {label} batch {batch}", dtype, got, base.tokens),
    ]


def _tell_limits(bench: Bench, dtype: str, machine: Machine) -> None:
    """The limit first, then the gap."""
    rows = []
    context = bench.mean_prompt(dtype) + bench.sizes.num_tokens / 2
    for batch in bench.sizes.batches:
        floor = limits.floor(bench.sizes.shape, dtype, batch, context, machine)
        rows.append(
            [
                batch,
                f"{floor.num_bytes / 1e6:.0f} MB",
                f"{1e3 * floor.num_bytes / machine.bytes_per_s:.1f} ms",
                f"{floor.num_flops / 1e9:.2f} GFLOP",
                f"{1e3 * floor.num_flops / machine.flops_per_s:.1f} ms",
                rate(batch / floor.seconds),
            ]
        )
    columns = ("batch", "reads", "takes", "computes", "takes", "limit tok/s")
    title = (
        f"(a) {dtype}, {bench.num_threads} threads: reading {machine.bytes_per_s / 1e9:.1f} GB/s, "
        f"multiplying {machine.flops_per_s / 1e9:.0f} GFLOP/s (measured); a step at best"
    )
    bench.report.table(title, columns, rows)
