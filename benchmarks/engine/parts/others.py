"""(c) Against the other ways to run a model, on its own or over two processes.

Ways without a cache compute the whole text for every token, so that what a token costs grows with
it. They are timed over a few tokens at the context the others have on average: the prompt and
half of the answer. transformers' own pipeline takes prompts of one length only, which is the mean
of the others'.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.engine.bench import Bench
from benchmarks.engine.contenders.base import Job
from benchmarks.engine.figures import Outcome
from benchmarks.engine.host import Host
from benchmarks.engine.measure import Entry
from benchmarks.engine.workload import equal_prompts
from benchmarks.report import Figure, percent, rate

GOAL_NAIVE = 20.0
NUM_STAGES = 2
#: Tokens that ways without a cache are timed over.
NUM_RECOMPUTED = 3
COLUMNS = (
    "way", "processes x threads", "decode tok/s", "plait in two to it", "end to end tok/s",
    "noise", "spread", "same tokens",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Way:
    contender: str
    #: Over several processes of one thread, not one of several.
    is_cut: bool = False
    #: Has no cache.
    recomputes: bool = False
    #: Needs prompts of one length.
    wants_equal: bool = False


OURS, REFERENCE = "plait, two ranks", "generate"
PIPPY, NAIVE = "prepare_pippy, recomputing", "naive: gRPC a layer"
WAYS = {
    OURS: Way("plait", is_cut=True),
    "plait, one rank": Way("plait"),
    REFERENCE: Way("generate"),
    "generate_batch": Way("generate_batch"),
    "transformers' pipeline": Way("native", is_cut=True, wants_equal=True),
    PIPPY: Way("pippy", is_cut=True, recomputes=True),
    NAIVE: Way("naive", is_cut=True, recomputes=True),
}
MAIN_WAYS = [label for label in WAYS if label != PIPPY]
#: Repetitions of the ways without a cache, which take long and vary little.
ROUNDS_RECOMPUTING = 2


def run(bench: Bench, dtype: str, labels: Iterable[str] = WAYS) -> None:
    batch = bench.sizes.main_batch
    wanted = {}
    for label in labels:
        more = {"num_threads": 1, "num_stages": NUM_STAGES} if WAYS[label].is_cut else {}
        settings = bench.settings(dtype, max_batch=batch, **more)
        wanted[label] = (WAYS[label].contender, settings)
    with bench.hosts(wanted) as hosts:
        contests = _contests(bench, dtype, hosts)
        fast = {label: each.entry for label, each in contests.items() if not each.recomputes}
        slow = {label: each.entry for label, each in contests.items() if each.recomputes}
        outcomes = bench.contest(fast)
        outcomes |= bench.contest(slow, min(ROUNDS_RECOMPUTING, bench.rounds))
    truth = {label: each.truth for label, each in contests.items()}
    _tell(bench, dtype, outcomes, truth)


@dataclass(frozen=True, slots=True)
class _Contest:
    """What one way is given, and what it should answer."""

    entry: Entry
    truth: list[list[int]]
    recomputes: bool


def _contests(bench: Bench, dtype: str, hosts: Mapping[str, Host]) -> dict[str, _Contest]:
    batch, half = bench.sizes.main_batch, bench.sizes.num_tokens // 2
    jobs, equal = bench.jobs(batch, dtype), _equal_jobs(bench, dtype, batch)
    truth = hosts[REFERENCE].run(jobs).tokens
    equal_truth = hosts[REFERENCE].run(equal).tokens
    rests = [answer[half:] for answer in truth]
    halves = _half_way(jobs, truth, half)
    found: dict[str, _Contest] = {}
    for label, host in hosts.items():
        if WAYS[label].recomputes:
            found[label] = _Contest((host, halves), rests, True)
        elif WAYS[label].wants_equal:
            found[label] = _Contest((host, equal), equal_truth, False)
        else:
            found[label] = _Contest((host, jobs), truth, False)
    return found


def _equal_jobs(bench: Bench, dtype: str, batch: int) -> list[Job]:
    prompts = equal_prompts(batch, bench.mean_prompt(dtype), bench.sizes.shape.vocab_size)
    return [Job(tuple(prompt), bench.sizes.num_tokens) for prompt in prompts]


def _half_way(jobs: Sequence[Job], answers: Sequence[Sequence[int]], half: int) -> list[Job]:
    """The jobs as they stand after half of their tokens."""
    return [
        Job((*job.prompt, *answer[:half]), NUM_RECOMPUTED)
        for job, answer in zip(jobs, answers, strict=True)
    ]


def _tell(
    bench: Bench, dtype: str, outcomes: dict[str, Outcome], truth: dict[str, list[list[int]]]
) -> None:
    ours = outcomes[OURS].rate
    rows: list[list[object]] = []
    for label, got in outcomes.items():
        way = WAYS[label]
        rows.append(
            [
                label,
                f"{NUM_STAGES} x 1" if way.is_cut else f"1 x {bench.num_threads}",
                rate(got.rate),
                f"{ours / got.rate:.2f}",
                "-" if way.recomputes else rate(got.end_to_end_rate),
                percent(got.noise_ratio),
                percent(got.spread_ratio),
                bench.equal(f"(c) {label}", dtype, got, truth[label]),
            ]
        )
    title = f"(c) {dtype}, batch {bench.sizes.main_batch}: other ways"
    bench.report.table(title, COLUMNS, rows)
    if NAIVE in outcomes:
        goal = GOAL_NAIVE if dtype == "float32" else None
        name = f"(c) {dtype} batch {bench.sizes.main_batch} against the naive way"
        bench.report.figure(Figure(name, ours / outcomes[NAIVE].rate, goal, unit="x"))
