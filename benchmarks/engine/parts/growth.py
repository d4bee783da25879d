"""(e) How time grows with the number of stages, with the delay of a link, and with the batch.

Stages have one thread each and share the machine: with more stages than cores they take turns,
so that the step can only get longer. The delay is added to every hop between two stages.
"""

from __future__ import annotations

from benchmarks.engine.bench import Bench
from benchmarks.engine.contenders.base import Settings
from benchmarks.engine.figures import Outcome
from benchmarks.report import percent, rate

COLUMNS = ("stages", "link delay", "batch", "ms a token", "decode tok/s", "noise", "spread")
NUM_STAGES = 2


def run(bench: Bench, dtype: str) -> None:
    sizes = bench.sizes
    batch = sizes.main_batch
    one_thread = {"num_threads": 1, "max_batch": batch}
    stages = [bench.settings(dtype, num_stages=number, **one_thread) for number in sizes.num_stages]
    links = [
        bench.settings(dtype, num_stages=NUM_STAGES, link_delay_s=delay, **one_thread)
        for delay in sizes.link_delays_s
    ]
    _tell(bench, f"(e) {dtype}: stages", _each(bench, dtype, stages))
    _tell(bench, f"(e) {dtype}: links", _each(bench, dtype, links))
    _tell(bench, f"(e) {dtype}: batches", _batches(bench, dtype))


def _each(bench: Bench, dtype: str, wanted: list[Settings]) -> list[tuple[Settings, int, Outcome]]:
    """Every setting at the main batch, in turn with the others."""
    jobs = bench.jobs(bench.sizes.main_batch, dtype)
    labels = {str(number): ("plait", settings) for number, settings in enumerate(wanted)}
    with bench.hosts(labels) as hosts:
        outcomes = bench.contest({label: (host, jobs) for label, host in hosts.items()})
    return [(settings, len(jobs), outcomes[str(number)]) for number, settings in enumerate(wanted)]


def _batches(bench: Bench, dtype: str) -> list[tuple[Settings, int, Outcome]]:
    """One engine, as many requests as it could take and fewer."""
    most = max(bench.sizes.batches)
    settings = bench.settings(dtype, num_threads=1, num_stages=NUM_STAGES, max_batch=most)
    found: list[tuple[Settings, int, Outcome]] = []
    with bench.hosts({"plait": ("plait", settings)}) as hosts:
        for batch in bench.sizes.batches:
            entries = {"plait": (hosts["plait"], bench.jobs(batch, dtype))}
            found.append((settings, batch, bench.contest(entries)["plait"]))
    return found


def _tell(bench: Bench, title: str, found: list[tuple[Settings, int, Outcome]]) -> None:
    rows = [
        [
            settings.num_stages,
            f"{1e3 * settings.link_delay_s:.0f} ms",
            batch,
            f"{1e3 * batch / got.rate:.0f}",
            rate(got.rate),
            percent(got.noise_ratio),
            percent(got.spread_ratio),
        ]
        for settings, batch, got in found
    ]
    bench.report.table(title, COLUMNS, rows)
