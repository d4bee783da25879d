"""(c) Against the other ways to run a model, on its own or over two processes.

Ways without a cache compute the whole text for every token, so that what a token costs grows with
it. They are timed over a few tokens at the context the others have on average: the prompt and
half of the answer. transformers' own pipeline takes prompts of one length only, which is the mean
of the others'.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.engine.bench import Bench
from benchmarks.engine.contenders.base import Job
from benchmarks.engine.figures import Outcome
from benchmarks.engine.host import Host
from benchmarks.engine.measure import Entry
from benchmarks.engine.report import Figure, percent, rate
from benchmarks.engine.workload import equal_prompts

GOAL_NAIVE = 20.0
NUM_STAGES = 2
#: Tokens that ways without a cache are timed over.
NUM_RECOMPUTED = 3
COLUMNS = (
    "way", "processes x threads", "decode tok/s", "plait in two to it", "end to end tok/s",
    "noise", "spread", "same tokens",
)  # fmt: skip
#: Label: (contender, whether it is cut into stages, whether it has no cache).
WAYS = {
    "plait, two ranks": ("plait", True, False),
    "plait, one rank": ("plait", False, False),
    "generate": ("generate", False, False),
    "generate_batch": ("generate_batch", False, False),
    "transformers' pipeline": ("native", True, False),
    "prepare_pippy, recomputing": ("pippy", True, True),
    "naive: gRPC a layer": ("naive", True, True),
}
OURS, REFERENCE, NATIVE, NAIVE = (
    "plait, two ranks",
    "generate",
    "transformers' pipeline",
    "naive: gRPC a layer",
)


def run(bench: Bench, dtype: str, ways: Sequence[str] = tuple(WAYS)) -> None:
    batch = bench.sizes.main_batch
    wanted = {}
    for label in ways:
        name, is_cut, _ = WAYS[label]
        more = {"num_threads": 1, "num_stages": NUM_STAGES} if is_cut else {}
        wanted[label] = (name, bench.settings(dtype, max_batch=batch, **more))
    with bench.hosts(wanted) as hosts:
        jobs = bench.jobs(batch, dtype)
        expected = hosts[REFERENCE].run(jobs).tokens
        equal = _equal_jobs(bench, dtype, batch)
        expected_equal = hosts[REFERENCE].run(equal).tokens if NATIVE in ways else expected
        late = _half_way(jobs, expected)
        entries, truth = _entries(hosts, jobs, equal, late, expected, expected_equal)
        fast = {label: each for label, each in entries.items() if not WAYS[label][2]}
        outcomes = bench.contest(fast)
        slow = {label: each for label, each in entries.items() if WAYS[label][2]}
        outcomes |= bench.contest(slow, rounds=min(2, bench.rounds))
    _tell(bench, dtype, outcomes, truth)


def _equal_jobs(bench: Bench, dtype: str, batch: int) -> list[Job]:
    prompts = equal_prompts(batch, bench.mean_prompt(dtype), bench.sizes.shape.vocab_size)
    return [Job(tuple(prompt), bench.sizes.num_tokens) for prompt in prompts]


def _half_way(jobs: Sequence[Job], answers: Sequence[Sequence[int]]) -> list[Job]:
    """The jobs as they stand after half of their tokens."""
    half = jobs[0].num_tokens // 2
    return [
        Job((*job.prompt, *answer[:half]), NUM_RECOMPUTED)
        for job, answer in zip(jobs, answers, strict=True)
    ]


def _entries(
    hosts: dict[str, Host],
    jobs: list[Job],
    equal: list[Job],
    late: list[Job],
    expected: list[list[int]],
    expected_equal: list[list[int]],
) -> tuple[dict[str, Entry], dict[str, list[list[int]]]]:
    """What each way is given, and what it should answer."""
    half = jobs[0].num_tokens // 2
    entries: dict[str, Entry] = {}
    truth: dict[str, list[list[int]]] = {}
    for label, host in hosts.items():
        if WAYS[label][2]:
            entries[label], truth[label] = (host, late), [answer[half:] for answer in expected]
        elif label == NATIVE:
            entries[label], truth[label] = (host, equal), expected_equal
        else:
            entries[label], truth[label] = (host, jobs), expected
    return entries, truth


def _tell(
    bench: Bench, dtype: str, outcomes: dict[str, Outcome], truth: dict[str, list[list[int]]]
) -> None:
    ours = outcomes[OURS].rate
    rows: list[list[object]] = []
    for label, got in outcomes.items():
        _, is_cut, recomputes = WAYS[label]
        rows.append(
            [
                label,
                f"{NUM_STAGES} x 1" if is_cut else f"1 x {bench.num_threads}",
                rate(got.rate),
                f"{ours / got.rate:.2f}",
                "-" if recomputes else rate(got.end_to_end_rate),
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
