"""Whatever comes and goes, every sequence is computed token for token, each once and in order."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

from hypothesis import example, given, settings
from hypothesis import strategies as st

from handlers.pipeline.lanes import LaneModel
from handlers.pipeline.schedule import Schedule, Sequence, Shape
from handlers.pipeline.step import BLOCK, Draw, Step
from tests.properties.block_memory import VOCABULARY, Memory, alone, answer_of

#: Prompts begin like one of these, so that there are prefixes to share.
TEXTS = [[random.Random(seed).randrange(VOCABULARY) for _ in range(300)] for seed in (1, 2)]
CONTEXT = 4 * BLOCK


@dataclass
class Arrival:
    prompt: list[int]
    #: Tokens of an earlier attempt.
    num_known: int
    num_new: int
    #: Steps that were issued when it comes.
    at: int
    #: New tokens after which its client leaves; None: it stays.
    leaves: int | None
    is_suspect: bool

    @property
    def num_wanted(self) -> int:
        return self.num_new if self.leaves is None else min(self.num_new, self.leaves)


@dataclass
class Run:
    """A schedule, its stages, and results on their way."""

    schedule: Schedule
    memory: Memory
    randomness: random.Random
    results: deque[tuple[Step, list[Draw | None]]] = field(default_factory=deque)
    late: list[tuple[Step, list[Draw | None]]] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    #: By request: steps in a row that it was ready for and not in, the most so far, and now.
    waits: dict[str, int] = field(default_factory=dict)
    longest_wait: int = 0
    #: Prefill steps without the prompt that came first.
    num_overtakings: int = 0
    #: By request: prefill steps since it was in a step, while it decodes; and the most so far.
    passed: dict[str, int] = field(default_factory=dict)
    most_passed: int = 0

    def watch(self, step: Step) -> None:
        """Note who was ready for the step and is not in it: of the prompts, the first to come."""
        tokens = {row.slot: row.num_tokens for row in step.rows if row.num_tokens}
        running = [each for each in self.schedule.sequences if each.slot is not None]
        first = next((s for s in running if s.num_missing + tokens.get(s.slot, 0) > 1), None)
        is_first_in = first is not None and first.slot in tokens
        self.num_overtakings += step.width > 1 and not is_first_in
        for sequence in running:
            name, is_in = sequence.request_id, sequence.slot in tokens
            is_ready = sequence.num_missing == 1 or sequence is first
            self.waits[name] = self.waits.get(name, 0) + 1 if is_ready and not is_in else 0
            decodes = sequence.num_missing <= 1 and not is_in
            self.passed[name] = self.passed.get(name, 0) + (step.width > 1) if decodes else 0
        self.longest_wait = max(self.longest_wait, *self.waits.values())
        self.most_passed = max(self.most_passed, *self.passed.values())

    def turn(self) -> list[tuple[Sequence, Draw]]:
        """Issue some or all there is, or take the oldest result; at least one of them."""
        is_eager = self.randomness.random() < 0.8
        while (is_eager or not self.results) and (step := self.schedule.issue()) is not None:
            self.steps.append(step)
            self.watch(step)
            self.results.append((step, self.memory.run(step)))
        if not self.results:
            return []
        step, draws = self.results.popleft()
        for stage in range(self.memory.shape.num_stages):
            self.schedule.observe(step.number, stage, self.randomness.random())
        return self.schedule.apply(step.number, draws, 3 * self.randomness.random())

    def lose_all(self) -> None:
        """The stages are started again; results of before may still come."""
        self.late.extend(self.results)
        self.results.clear()
        self.memory.lose()
        self.schedule.reset()
        for step, draws in self.late:
            assert self.schedule.apply(step.number, draws) == []


def answers() -> st.SearchStrategy[Arrival]:
    def build(text: int, shared: int, own: list[int], *rest: object) -> Arrival:
        prompt = (TEXTS[text][:shared] + own)[: CONTEXT - 70] or [0]
        return Arrival(prompt, *rest)

    return st.builds(
        build,
        st.sampled_from([0, 0, 1]),
        st.sampled_from([0, 63, 64, 65, 100, 128, 130, 180]),
        st.lists(st.integers(0, VOCABULARY - 1), max_size=2),
        st.sampled_from([0, 0, 0, 1, 20]),
        st.sampled_from([1, 1, 2, 3, 40]),
        st.integers(0, 60),
        st.none() | st.none() | st.integers(0, 3),
        st.sampled_from([False] * 9 + [True]),
    )


def shapes(is_exact: bool = False) -> st.SearchStrategy[Shape]:
    """Both layouts; of the paged one down to the fewest blocks there may be."""

    def build(num_stages: int, max_rows: int, chunk: int, lack: int, has_cache: bool) -> Shape:
        full = max_rows * CONTEXT // BLOCK
        num_blocks = full if lack == 0 else max(CONTEXT // BLOCK + 1, full - lack)
        return Shape(num_stages, max_rows, chunk, CONTEXT, num_blocks, is_exact, has_cache)

    return st.builds(
        build,
        st.integers(1, 3),
        st.integers(1, 7),
        st.sampled_from([16, 64, 128] if is_exact else [16, 64, 100, 256]),
        st.sampled_from([0, 0, 1, 4, 9, 20]),
        st.sampled_from([True, True, True, False]),
    )


def simulate(
    shape: Shape,
    arrivals: list[Arrival],
    losses: set[int],
    *,
    lanes: int | None = None,
    seed: int = 0,
) -> Run:
    """Run all arrivals to their ends; asserts that they are told what they would be alone."""
    run = Run(
        Schedule(shape, LaneModel(shape.num_stages, lanes)),
        Memory(shape),
        random.Random(seed),
    )
    coming = sorted(enumerate(arrivals), key=lambda pair: pair[1].at)
    open_: dict[int, Sequence] = {}
    for turn in range(20_000):
        while coming and (coming[0][1].at <= len(run.steps) or not open_):
            index, arrival = coming.pop(0)
            open_[index] = begin(index, arrival, shape, lanes)
            run.schedule.add(open_[index])
        if turn in losses:
            run.lose_all()
        run.turn()
        check_blocks(run.schedule, shape)
        for index, sequence in list(open_.items()):
            arrival = arrivals[index]
            count = len(answer_of(sequence))
            if count - arrival.num_known >= arrival.num_wanted:
                run.schedule.remove(sequence)
                assert answer_of(sequence) == expected(arrival, count, shape, lanes)
                del open_[index]
        if not open_ and not coming:
            return run
    raise AssertionError(f"did not come to an end: {run.schedule!r} {open_}")


def begin(index: int, arrival: Arrival, shape: Shape, lanes: int | None) -> Sequence:
    known = expected(arrival, arrival.num_known, shape, lanes)
    sequence = Sequence(str(index), 0, [*arrival.prompt, *known], len(arrival.prompt))
    if arrival.is_suspect:
        sequence.suspect_until = len(sequence.token_ids)
    return sequence


def expected(arrival: Arrival, count: int, shape: Shape, lanes: int | None) -> list[int]:
    if not shape.is_exact:
        return alone(arrival.prompt, count)
    schedule, memory = Schedule(shape, LaneModel(shape.num_stages, lanes)), Memory(shape)
    sequence = Sequence("alone", 0, list(arrival.prompt), len(arrival.prompt))
    schedule.add(sequence)
    while len(answer_of(sequence)) < count:
        step = schedule.issue()
        assert step is not None
        schedule.apply(step.number, memory.run(step))
    return answer_of(sequence)


def check_blocks(schedule: Schedule, shape: Shape) -> None:
    counts = schedule.counts()
    assert counts.num_blocks_used >= 0
    assert counts.num_blocks_cached >= 0
    assert counts.num_blocks_free >= 0
    assert counts.num_replay_mismatches == 0


plans = st.lists(answers(), min_size=1, max_size=20)
losses = st.sets(st.integers(0, 80), max_size=2)


@settings(max_examples=150, deadline=None)
@given(shapes(), plans, losses, st.none() | st.integers(1, 5), st.integers(0, 9))
def test_every_answer_is_what_it_would_be_alone(
    shape: Shape, arrivals: list[Arrival], losses: set[int], lanes: int | None, seed: int
) -> None:
    run = simulate(shape, arrivals, losses, lanes=lanes, seed=seed)

    while run.results:
        run.turn()
    counts = run.schedule.counts()
    assert run.schedule.issue() is None
    assert (counts.num_waiting, counts.num_running, counts.num_blocks_used) == (0, 0, 0)


#: A prompt of thirteen steps, and one that came later, whose turn it is after the twelve others.
LONG, SHORT = (Arrival([0] * length, 0, 1, 0, None, is_suspect=False) for length in (200, 2))


@settings(max_examples=100, deadline=None)
@given(shapes(), plans, st.integers(1, 4), st.integers(0, 9))
@example(Shape(1, 2, 16, CONTEXT, 8, has_prefix_cache=False), [LONG, SHORT], 1, 0)
def test_nobody_waits_long_for_a_step(
    shape: Shape, arrivals: list[Arrival], lanes: int, seed: int
) -> None:
    """Nobody is left out of more steps than this.

    One that decodes is passed by so many prefill steps and no more. Of the decode steps, those
    left out of ``4 * lanes`` steps are next, the one that waited longest first: each step takes
    one of those before it away, and as admission makes nobody wait longer than it has, nobody
    joins them. There are at most ``max_rows - 1`` of them, and one step more until it is overdue.

    The prompt that came first is in every prefill step, and the next may go when all that decode
    have been in a step since they were last passed: then it has waited for as many decode steps.
    Those that came later wait for the prompts before them, however long these are.
    """
    for arrival in arrivals:
        arrival.is_suspect = False
    run = simulate(shape, arrivals, set(), lanes=lanes, seed=seed)

    num_prefills = max(1, shape.num_stages - 1)
    assert run.most_passed <= num_prefills
    assert run.longest_wait <= 4 * lanes + shape.max_rows + num_prefills
    assert run.num_overtakings == 0


@settings(max_examples=100, deadline=None)
@given(shapes(is_exact=True), plans, losses, st.none() | st.integers(1, 5), st.integers(0, 9))
def test_in_exact_mode_shapes_are_what_they_would_be_alone(
    shape: Shape, arrivals: list[Arrival], losses: set[int], lanes: int | None, seed: int
) -> None:
    run = simulate(shape, arrivals, losses, lanes=lanes, seed=seed)

    assert {len(step.rows) for step in run.steps if step.width > 1} <= {1}
    assert len({len(step.rows) for step in run.steps if step.width == 1}) <= 1
