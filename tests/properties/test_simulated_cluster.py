"""Promises 1 to 5 in a simulated cluster, under faults, from seeds; see docs/design/0001.

A failure names its seed, and ``python -m scheduler.testing.simulation --seed N`` runs it again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from scheduler import moves
from scheduler.dispatcher.link import Link
from scheduler.fair_queue import FairQueue
from scheduler.moves import dispatch
from scheduler.policies import virtual_time
from scheduler.records import changed
from scheduler.stores._tasks_sql import Tasks
from scheduler.stores.base import Transaction
from scheduler.task import TaskState
from scheduler.testing.simulation.database import Disk
from scheduler.testing.simulation.world import simulate

#: Seconds of `make test` that go into it; `make simulate` has no limit.
BUDGET_S = 60.0
#: Seeds in which a planted bug must show.
MOST_SEEDS = 200


@pytest.mark.timeout(4 * BUDGET_S)
def test_every_promise_holds_in_every_seed_that_a_minute_has_room_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    until = time.monotonic() + BUDGET_S
    faults: Counter[str] = Counter()
    num_seeds = 0
    while time.monotonic() < until:
        report = simulate(str(num_seeds))
        assert not report.problems, f"seed {report.seed} ({report.scenario}): {report.problems[:5]}"
        faults += report.faults
        num_seeds += 1

    with capsys.disabled():
        sys.stdout.write(f"\nseeds 0 to {num_seeds - 1}, {faults.total()} faults: all hold\n")
    assert num_seeds >= 20


def test_a_seed_is_the_same_run_again_in_another_process() -> None:
    seed = "3"
    digest = f"digest {simulate(seed).digest:08x}"

    for hash_seed in ("1", "2"):
        told = subprocess.run(
            [sys.executable, "-m", "scheduler.testing.simulation", "--seed", seed],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
        )
        assert digest in told.stdout


# ------------------------------------------------------- what must not go unnoticed, one at a time


def answer_before_it_is_on_disk(plant: pytest.MonkeyPatch) -> None:
    run = Disk.run

    def lying(self: Disk, tx: Any, command: Any, *, fails: bool) -> Any:
        answers: list[Any] = []
        try:
            return run(self, tx, lambda tx: answers.append(command(tx)) or answers[0], fails=fails)
        except Exception:
            if not fails or not answers:
                raise
            return answers[0]

    plant.setattr(Disk, "run", lying)


def cancel_what_has_succeeded(plant: pytest.MonkeyPatch) -> None:
    cancel = moves.cancel

    def mutant(tx: Transaction, rules: Any, task_id: str, *rest: Any) -> Any:
        task = moves.owned(tx, task_id)
        if task.state is TaskState.SUCCEEDED:
            tx.put_task(changed(task, state=TaskState.CANCELLED))
        return cancel(tx, rules, task_id, *rest)

    plant.setattr(moves, "cancel", mutant)


def take_an_old_fence_for_the_current_one(plant: pytest.MonkeyPatch) -> None:
    held = dispatch._held
    plant.setattr(dispatch, "_held", lambda task, fence: held(task, task.fence))


def lease_what_is_leased(plant: pytest.MonkeyPatch) -> None:
    """A claim answers with what somebody already works on."""
    claim = moves.claim

    def mutant(
        tx: Transaction, rules: Any, model: str, runner: str, *rest: Any, **more: Any
    ) -> Any:
        for task in tx.leases_of(model)[:1]:
            if task.runner != runner:
                tx.put_task(changed(task, runner=runner))
        return claim(tx, rules, model, runner, *rest, **more)

    plant.setattr(moves, "claim", mutant)


def write_a_repeated_chunk_again(plant: pytest.MonkeyPatch) -> None:
    append = moves.append

    def mutant(
        tx: Transaction, rules: Any, task_id: str, fence: int, chunks: Any, now: float
    ) -> Any:
        first = moves.owned(tx, task_id).num_chunks
        renumbered = [changed(chunk, seq=seq) for seq, chunk in enumerate(chunks, first)]
        return append(tx, rules, task_id, fence, renumbered, now)

    plant.setattr(moves, "append", mutant)


def write_the_tail_of_an_answer_by_itself(plant: pytest.MonkeyPatch) -> None:
    succeed = Link._succeed

    async def mutant(self: Link, lease: Any, chunks: Any, outcome: Any) -> int:
        if chunks:
            await self._append(lease, chunks)
        return await succeed(self, lease, chunks, outcome)

    plant.setattr(Link, "_succeed", mutant)


def forget_what_is_in_the_journal(plant: pytest.MonkeyPatch) -> None:
    plant.setattr(Tasks, "token_ids", lambda self, task_id: ())


def never_release_a_lease_that_ran_out(plant: pytest.MonkeyPatch) -> None:
    plant.setattr(Tasks, "expired_leases", lambda self, now, limit: [])


def never_queue_again_what_was_delayed(plant: pytest.MonkeyPatch) -> None:
    plant.setattr(Tasks, "due", lambda self, now, limit: [])


def charge_nothing(plant: pytest.MonkeyPatch) -> None:
    plant.setattr(virtual_time.Policy, "price", lambda self, cost, weight_permille: 0)


def serve_classes_in_a_fixed_order(plant: pytest.MonkeyPatch) -> None:
    plant.setattr(FairQueue, "_charge_band", lambda self, tx, flow, price: None)


#: What a problem that it causes begins with.
MUTANTS: dict[Callable[[pytest.MonkeyPatch], None], tuple[str, ...]] = {
    answer_before_it_is_on_disk: ("promise 1", "promise 4"),
    cancel_what_has_succeeded: ("promise 1",),
    take_an_old_fence_for_the_current_one: ("promise 2",),
    lease_what_is_leased: ("promise 2",),
    write_a_repeated_chunk_again: ("promise 3",),
    write_the_tail_of_an_answer_by_itself: ("promise 3",),
    forget_what_is_in_the_journal: ("promise 3",),
    never_release_a_lease_that_ran_out: ("promise 4",),
    never_queue_again_what_was_delayed: ("promise 4",),
    charge_nothing: ("promise 5",),
    serve_classes_in_a_fixed_order: ("promise 5: ('batch',) and ('standard',)",),
}


@pytest.mark.timeout(4 * BUDGET_S)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_planted_bug_is_caught(
    mutant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant(monkeypatch)

    for number in range(MOST_SEEDS):
        report = simulate(str(number))
        if any(problem.startswith(MUTANTS[mutant]) for problem in report.problems):
            return
    pytest.fail(f"not caught by seeds 0 to {MOST_SEEDS - 1}")
