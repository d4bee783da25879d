"""Plait's queue beside other task queues, all in one run on the same task, which does nothing.

    make bench-queue                       # everything; about ten minutes on two cores
    make bench-queue ARGS=--quick          # does it run? no figures worth keeping
    make bench-queue ARGS="--only ab --contenders plait_sqlite huey_sqlite --json out.json"

Parts: (a) accepted and drained tasks a second, and latency; (b) tasks whose worker is killed;
(c) how the time of a claim grows. Run it on a machine that does nothing else. The peers on Redis
need Debian's redis-server; what is missing is told and left out.

This folder has no __init__.py: it would hide the standard library's queue from scripts beside it.
"""

from __future__ import annotations

import argparse
import json
import platform
import sqlite3
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil

from benchmarks.noise import Patience
from benchmarks.queue import roster
from benchmarks.queue.bench import Bench, Sizes
from benchmarks.queue.parts import decision, kill, rates
from benchmarks.report import Report

FULL = Sizes(
    rounds=3,
    num_each=1000,
    num_paced=200,
    recovery_s=75.0,
    num_tenants=(10, 1_000, 100_000),
    num_shared=100_000,
    num_queued=(10, 1_000, 100_000, 1_000_000),
    num_claims=300,
)
QUICK = replace(
    FULL,
    rounds=1,
    num_each=150,
    num_paced=40,
    recovery_s=15.0,
    num_tenants=(10, 1_000),
    num_shared=1_000,
    num_queued=(10, 1_000),
    num_claims=50,
)
#: Seconds all waiting for a quiet machine may take together.
PATIENCE_S, QUICK_PATIENCE_S = 60.0, 2.0
PARTS = {"a": rates.run, "b": kill.run, "c": decision.run}


def main() -> int:
    options = _options()
    sizes = QUICK if options.quick else FULL
    sizes = replace(sizes, rounds=options.rounds or sizes.rounds)
    patience = Patience(QUICK_PATIENCE_S if options.quick else PATIENCE_S)
    bench = Bench(sizes, options.cache, options.contenders, Report("bench-queue"), patience)
    began = time.monotonic()
    cores = psutil.cpu_count()
    bench.report.note(f"{platform.machine()}, {cores} cores; SQLite {sqlite3.sqlite_version}")
    for letter, run in PARTS.items():
        if letter in options.only:
            run(bench)
    bench.report.note(f"took {(time.monotonic() - began) / 60:.1f} minutes")
    if options.json:
        options.json.write_text(json.dumps(bench.report.to_document(), indent=1))
    print(bench.report.line())
    return 0


def _options() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.queue",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = roster.names()
    parser.add_argument("--quick", action="store_true", help="little of everything, once")
    parser.add_argument("--only", default="".join(PARTS), help="parts to run, such as: ac")
    parser.add_argument("--contenders", nargs="+", default=names, choices=names, metavar="NAME")
    parser.add_argument("--rounds", type=int, help="repetitions of part (a)")
    parser.add_argument("--cache", type=Path, default=Path(".bench/queue"), help="stores and logs")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
