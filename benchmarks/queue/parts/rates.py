"""(a) How fast tasks are accepted and drained, and how long a task waits when nobody is in its way.

In each round every contender starts with an empty store. Tasks are submitted one by one, then as
many together; then a worker is started and the whole backlog is drained, from the first beginning
to the last. Afterwards tasks come at a steady pace and find the worker idle. Of the rounds the
quietest count; the range is that of all.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.noise import QUIET_RATIO, NoiseMeter
from benchmarks.queue import roster
from benchmarks.queue.bench import FAILURES, Bench, wait_until
from benchmarks.queue.contenders.base import RATES, Job
from benchmarks.queue.figures import Latency, best, drain_rate, latency, quiet
from benchmarks.queue.roster import Entry
from benchmarks.queue.session import Session
from benchmarks.report import Figure, percent

GOAL_DURABLE, GOAL_SERVED, GOAL_PATH = 3.0, 5.0, 1.0
OURS, PATH, PATH_PEER = "plait_sqlite", "plait_path", "celery_redis"
SERVED, SERVED_PEER = "plait_postgres", "procrastinate_postgres"
PACE_S = 0.05
NUM_WARM_UP = 20
#: Seconds that an order, and the draining, may take.
_WITHIN_S = 60.0
#: Seconds after the last paced task until it must have begun.
_LATEST_S = 2.0
COLUMNS = (
    "contender", "durable", "accepted/s, one by one", "accepted/s, together", "drained/s",
    "range", "p50 ms", "p99 ms", "noise",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sample:
    """One contender in one round."""

    one_by_one: float
    together: float
    drained: float
    #: None: not measured with these slots, or no task began.
    latency: Latency | None
    #: Share of the machine that others took meanwhile.
    noise_ratio: float
    #: Tasks that were not drained in time.
    num_missing: int


def run(bench: Bench) -> None:
    usual = roster.entries(bench.chosen, RATES)
    entries = [
        replace(entry, slots=slots)
        for entry in usual
        for slots in (entry.slots, *entry.facts.more_slots)
    ]
    samples: dict[str, list[Sample]] = {entry.key: [] for entry in entries}
    for number in range(bench.sizes.rounds):
        first = number % max(1, len(entries))
        # Each goes first once: what a contender leaves behind hits a different one every round.
        for entry in entries[first:] + entries[:first]:
            bench.patience.wait()
            try:
                samples[entry.key].append(_sample(bench, entry))
            except FAILURES as error:
                bench.report.note(f"{entry.label}: not measured in round {number + 1}: {error}")
    _tell_who(bench, usual)
    _tell(bench, [entry for entry in entries if samples[entry.key]], samples)


def _sample(bench: Bench, entry: Entry) -> Sample:
    each, paced = bench.sizes.num_each, bench.sizes.num_paced
    backlog = NUM_WARM_UP + 2 * each
    with Session(entry, bench.cache, backlog + paced) as session:
        session.submit(_jobs(0, NUM_WARM_UP), _WITHIN_S)
        meter = NoiseMeter()
        one_by_one = each / session.submit(_jobs(NUM_WARM_UP, each), _WITHIN_S)
        together = each / session.submit_together(_jobs(NUM_WARM_UP + each, each), _WITHIN_S)
        session.start_work()
        everything = range(backlog)
        wait_until(lambda: session.ledger.num_done(everything) == backlog, _WITHIN_S)
        noise_ratio = meter.ratio()
        missing = backlog - session.ledger.num_done(everything)
        drained = drain_rate(session.ledger.rows(everything))
        waits = None
        if entry.slots == roster.SLOTS and not missing:
            waits = _latency(session, _jobs(backlog, paced))
    return Sample(one_by_one, together, drained, waits, noise_ratio, missing)


def _latency(session: Session, jobs: Sequence[Job]) -> Latency | None:
    session.submit(jobs, _WITHIN_S + len(jobs) * PACE_S, PACE_S)
    indices = [job.index for job in jobs]
    wait_until(lambda: session.ledger.num_done(indices) == len(jobs), _LATEST_S)
    return latency(session.ledger.rows(indices))


def _jobs(first: int, count: int) -> list[Job]:
    return [Job(index) for index in range(first, first + count)]


# ------------------------------------------------------------------------------------- telling


def _tell_who(bench: Bench, entries: Sequence[Entry]) -> None:
    rows = [
        [e.label, roster.versions(e.facts), e.facts.promise, e.facts.together, e.facts.worker]
        for e in entries
    ]
    columns = ("contender", "made of", "an accepted task", "together", f"{roster.SLOTS} slots are")
    bench.report.table("who they are", columns, rows)


def _tell(bench: Bench, entries: Sequence[Entry], samples: Mapping[str, list[Sample]]) -> None:
    rows = [_row(entry, samples[entry.key]) for entry in entries]
    each = bench.sizes.num_each
    title = f"(a) {each} tasks one by one and {each} together, drained; then {1 / PACE_S:.0f}/s"
    bench.report.table(title, COLUMNS, rows)
    noisiest = max((s.noise_ratio for e in entries for s in _counted(samples[e.key])), default=0.0)
    if noisiest > QUIET_RATIO:
        message = f"others took up to {percent(noisiest)} of the machine: compare with care"
        bench.report.note(message)
    for entry in entries:
        if missing := max(sample.num_missing for sample in samples[entry.key]):
            bench.report.note(f"{entry.label}: {missing} tasks not drained in {_WITHIN_S:.0f} s")
    drained = {entry.name: 0.0 for entry in entries}
    for entry in entries:
        # With the number of slots that suits it.
        drained[entry.name] = max(drained[entry.name], _drained(_counted(samples[entry.key])))
    durable = {
        entry.name: drained[entry.name]
        for entry in entries
        if entry.facts.is_durable and not entry.name.startswith("plait")
    }
    peer = best(durable)
    if peer is not None:
        name = f"(a) drained by Plait on SQLite to {peer[0]}, the best durable peer"
        _compare(bench, name, drained.get(OURS), peer[1], GOAL_DURABLE)
    name = "(a) drained by Plait on PostgreSQL to procrastinate"
    _compare(bench, name, drained.get(SERVED), drained.get(SERVED_PEER), GOAL_SERVED)
    name = "(a) whole path to celery"
    _compare(bench, name, drained.get(PATH), drained.get(PATH_PEER), GOAL_PATH)


def _compare(bench: Bench, name: str, ours: float | None, peer: float | None, goal: float) -> None:
    if ours and peer:
        bench.report.figure(Figure(name, ours / peer, goal, unit="x"))


def _row(entry: Entry, samples: Sequence[Sample]) -> list[object]:
    rates, samples = [sample.drained for sample in samples], _counted(samples)
    waits = [sample.latency for sample in samples if sample.latency is not None]
    p50, p99 = "-", "-"
    if waits:
        p50 = f"{1000 * statistics.median(wait.median_s for wait in waits):.1f}"
        p99 = f"{1000 * statistics.median(wait.p99_s for wait in waits):.1f}"
    return [
        entry.label,
        "yes" if entry.facts.is_durable else "no",
        f"{statistics.median(sample.one_by_one for sample in samples):,.0f}",
        f"{statistics.median(sample.together for sample in samples):,.0f}",
        f"{_drained(samples):,.0f}",
        f"{min(rates):,.0f} to {max(rates):,.0f}",
        p50,
        p99,
        percent(max(sample.noise_ratio for sample in samples)),
    ]


def _counted(samples: Sequence[Sample]) -> list[Sample]:
    return [samples[index] for index in quiet([sample.noise_ratio for sample in samples])]


def _drained(samples: Sequence[Sample]) -> float:
    return statistics.median(sample.drained for sample in samples)
