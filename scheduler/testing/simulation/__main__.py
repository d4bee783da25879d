"""Run many seeds on every core, and say in one line what came of it.

python -m scheduler.testing.simulation --seeds 1000
python -m scheduler.testing.simulation --seed 417        one seed, told in detail
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable

from scheduler.testing.simulation.scenario import draw
from scheduler.testing.simulation.world import Report, simulate

#: Problems of a seed that are shown; the first is mostly the cause of the others.
SHOWN = 5


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scheduler.testing.simulation")
    parser.add_argument("--seeds", type=int, default=1000, help="how many to run (default 1000)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (default 0)")
    parser.add_argument("--seed", help="run this one only, and tell what happened")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    given = parser.parse_args()
    if given.seed is not None:
        return _tell(simulate(given.seed))
    seeds = [str(number) for number in range(given.first, given.first + given.seeds)]
    return _run(seeds, given.jobs)


def _run(seeds: list[str], jobs: int) -> int:
    begun = time.monotonic()
    faults: Counter[str] = Counter()
    states: Counter[str] = Counter()
    attempts: Counter[str] = Counter()
    failed: list[str] = []
    num_commits = num_done = 0
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for report in pool.imap_unordered(simulate, seeds, chunksize=4):
            num_done += 1
            faults += report.faults
            states += report.states
            attempts += report.attempts
            num_commits += report.num_commits
            if report.problems:
                failed.append(report.seed)
                _show(report)
            if num_done % 100 == 0:
                print(f"{num_done} of {len(seeds)} seeds, {len(failed)} failed", flush=True)
    took_s = time.monotonic() - begun
    for kind, count in sorted(faults.items(), key=lambda item: -item[1]):
        print(f"{count:9}  {kind}")
    print(f"{states.total():9}  tasks: {_counts(states.items())}")
    print(f"{attempts.total():9}  attempts: {_counts(attempts.items())}")
    verdict = f"{len(failed)} FAILED: {' '.join(sorted(failed))}" if failed else "all hold"
    print(
        f"{len(seeds)} seeds ({seeds[0]} to {seeds[-1]}) in {took_s:.0f} s,"
        f" {len(seeds) / took_s:.1f} a second, {faults.total()} faults, {num_commits} commits:"
        f" {verdict}"
    )
    return 1 if failed else 0


def _show(report: Report) -> None:
    print(f"\nseed {report.seed}: {report.scenario}")
    for problem in report.problems[:SHOWN]:
        print(f"  {problem}")
    if (more := len(report.problems) - SHOWN) > 0:
        print(f"  and {more} more")
    print(f"  again: python -m scheduler.testing.simulation --seed {report.seed}", flush=True)


def _tell(report: Report) -> int:
    print(f"seed {report.seed}: {report.scenario}")
    for tenant in draw(report.seed).tenants:
        print(f"  {tenant}")
    print(f"faults: {_counts(report.faults.items())}")
    print(f"tasks: {_counts(report.states.items())}")
    print(f"attempts: {_counts(report.attempts.items())}")
    print(
        f"{report.num_commits} commits in {report.virtual_s:.0f} s of virtual time,"
        f" digest {report.digest:08x}"
    )
    for problem in report.problems:
        print(f"  {problem}")
    print("FAILED" if report.problems else "every promise holds")
    return 1 if report.problems else 0


def _counts(items: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(items)) or "none"


if __name__ == "__main__":
    sys.exit(main())
