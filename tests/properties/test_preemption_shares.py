"""Parking work for a higher class keeps classes at their shares, however long their tasks are."""

from __future__ import annotations

import pytest

from scheduler import moves
from scheduler.moves import Rules
from scheduler.task import Task
from scheduler.testing.tasks import MODEL, chunk, memory_transaction, rules, submission

#: Seconds that a token takes, that work is left alone, and tokens of a task.
TOKEN_S, SLICE_S, NUM_TOKENS = 1.0, 5.0, 100


def served_of(high: int, low: int, seconds: int) -> dict[str, int]:
    """Tokens by class after two classes of these weights have shared one slot for a while."""
    book: Rules = rules()
    assert book.preemption is not None
    with memory_transaction() as tx:
        tx.put_class("interactive", high)
        tx.put_class("batch", low)
        for number in range(seconds // NUM_TOKENS + 5):
            for name in ("batch", "interactive"):
                work = submission(
                    f"tenant of {name}",
                    priority_class=name,
                    estimated_cost=5 + 2 * NUM_TOKENS,
                )
                moves.submit(tx, book, work, f"{name}{number:03}", 0.0)
        served = {"batch": 0, "interactive": 0}
        running: Task | None = None
        for second in range(1, seconds):
            now = float(second) * TOKEN_S
            if running is not None and moves.preempt(tx, book, MODEL, now).value:
                running = None
            if running is None:
                running = moves.claim(tx, book, MODEL, "r", "demo__r0", 1, now).value[0].task
            at = moves.owned(tx, running.id).num_chunks
            moves.append(tx, book, running.id, running.fence, [chunk(at)], now)
            served[running.priority_class] += 1
            if at + 1 == NUM_TOKENS:
                moves.succeed(tx, book, running.id, running.fence, {}, now)
                running = None
        return served


@pytest.mark.parametrize(("high", "low"), [(1001, 1000), (2000, 1000), (4000, 1000)])
def test_parking_takes_from_no_class_what_its_weight_guarantees(high: int, low: int) -> None:
    seconds = 2500

    served = served_of(high, low, seconds)

    assert served["batch"] >= seconds * low / (high + low) - 2 * NUM_TOKENS
    assert served["interactive"] >= seconds * high / (high + low) - 2 * NUM_TOKENS
