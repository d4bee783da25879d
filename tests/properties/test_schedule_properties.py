"""Whatever comes and goes, every sequence is computed token for token, each once and in order."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from handlers.pipeline.schedule import Issue, Schedule, Sequence

CHUNK, LENGTH = 8, 128


@dataclass
class FakePipeline:
    """Keeps in each slot the tokens that were written; draws the sum of what a row can see."""

    slots: dict[int, list[int]] = field(default_factory=dict)

    def run(self, issue: Issue) -> list[int]:
        drawn = []
        for row, token_ids in zip(issue.step.rows, issue.token_ids, strict=True):
            if row.num_tokens == 0:
                drawn.append(-1)
                continue
            # What lies behind `start` is an earlier sequence's, or was written out of order.
            seen = self.slots.get(row.slot, [])[: row.start]
            assert len(seen) == row.start
            seen = seen + list(token_ids[: row.num_tokens])
            self.slots[row.slot] = seen
            drawn.append(next_token(seen))
        assert issue.step.width == max(row.num_tokens for row in issue.step.rows)
        return drawn


def next_token(token_ids: list[int]) -> int:
    return sum((index + 1) * token_id for index, token_id in enumerate(token_ids)) % 997


def alone(prompt: list[int], count: int) -> list[int]:
    token_ids = list(prompt)
    for _ in range(count):
        token_ids.append(next_token(token_ids))
    return token_ids


request = st.tuples(st.lists(st.integers(0, 996), min_size=1, max_size=30), st.integers(1, 12))
#: Before which step a request comes, and after how many tokens its client leaves, if it does.
plans = st.lists(
    st.tuples(request, st.integers(0, 20), st.none() | st.integers(0, 8)), min_size=1, max_size=12
)


@settings(max_examples=60, deadline=None)
@given(plans, st.integers(1, 3), st.integers(1, 4))
def test_every_answer_is_what_it_would_be_alone(
    arrivals: list[tuple[tuple[list[int], int], int, int | None]], lanes: int, rows: int
) -> None:
    schedule, pipeline = Schedule(lanes, rows, CHUNK, LENGTH), FakePipeline()
    coming = {
        index: Sequence(str(index), list(prompt))
        for index, ((prompt, _), _, _) in enumerate(arrivals)
    }
    open_ = dict(coming)
    in_flight: list[list[int]] = []
    for turn in range(2000):
        for index, (_, when, _) in enumerate(arrivals):
            if when == turn:
                schedule.add(coming.pop(index))
        while (issue := schedule.issue()) is not None:
            in_flight.append(pipeline.run(issue))
        if in_flight:
            schedule.apply(in_flight.pop(0))
        for index, sequence in list(open_.items()):
            (prompt, count), _, leaves = arrivals[index]
            done = len(sequence.token_ids) - len(prompt)
            if index in coming or (done < count and done != leaves):
                continue
            schedule.remove(sequence)
            assert sequence.token_ids == alone(prompt, done)
            del open_[index]
        if not open_:
            break
    assert not open_
    assert schedule.issue() is None
