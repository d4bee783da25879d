"""Runs contenders in turn and tells how much of the machine somebody else used meanwhile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.engine.contenders.base import Job
from benchmarks.engine.figures import Outcome, Sample, outcome
from benchmarks.engine.host import Host
from benchmarks.noise import NoiseMeter, Patience

Entry = tuple[Host, Sequence[Job]]


def contest(entries: Mapping[str, Entry], rounds: int, patience: Patience) -> dict[str, Outcome]:
    """Let all do their jobs ``rounds`` times, in turn, after one run each to warm up."""
    for host, jobs in entries.values():
        host.run(warm_up(jobs))
    samples: dict[str, list[Sample]] = {label: [] for label in entries}
    for number in range(rounds):
        order = list(entries)
        # Each goes first once: what a contender leaves behind hits a different one every round.
        for label in order[number % len(order) :] + order[: number % len(order)]:
            samples[label].append(sample(*entries[label], patience))
    return {label: outcome(each) for label, each in samples.items()}


def sample(host: Host, jobs: Sequence[Job], patience: Patience) -> Sample:
    """One repetition."""
    patience.wait()
    meter = NoiseMeter()
    run = host.run(jobs)
    return Sample(run, meter.ratio())


def warm_up(jobs: Sequence[Job]) -> list[Job]:
    """The same prompts and the first tokens."""
    return [Job(job.prompt, min(job.num_tokens, 2)) for job in jobs if not job.after_tokens]
