"""(b) What comes back of tasks whose worker is killed.

Eight tasks of three seconds begin; a second later their worker gets ``kill -9`` and is started
again. Whatever else the contender needs goes on. A further task shows that the new worker works.
All contenders wait at the same time: they sleep.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from benchmarks.queue import roster
from benchmarks.queue.bench import FAILURES, Bench, wait_until
from benchmarks.queue.contenders.base import KILL, Job
from benchmarks.queue.figures import num_done_within
from benchmarks.queue.roster import Entry
from benchmarks.queue.session import Session
from benchmarks.report import Figure

NUM_TASKS = roster.SLOTS
SECONDS = 3.0
KILL_AFTER_S = 1.0
SOON_S = 15.0
OURS = "plait_runner"
#: Seconds that the machine may take to have all contenders at work: they start together.
_WITHIN_S = 90.0
COLUMNS = (
    "contender",
    "within {:.0f} s",
    "within {:.0f} s",
    "begun twice",
    "what brings them back",
)


@dataclass(frozen=True, slots=True)
class Recovery:
    """Of the tasks whose worker was killed."""

    num_soon: int
    num_late: int
    num_begun_twice: int


def run(bench: Bench) -> None:
    entries = roster.entries(bench.chosen, KILL)
    with ThreadPoolExecutor(max_workers=max(1, len(entries))) as pool:
        waiting = {entry.key: pool.submit(_recover, bench, entry) for entry in entries}
    rows: list[list[object]] = []
    for entry in entries:
        try:
            found = waiting[entry.key].result()
        except FAILURES as error:
            bench.report.note(f"{entry.label}: not killed: {error}")
            continue
        soon, late = f"{found.num_soon} of {NUM_TASKS}", f"{found.num_late} of {NUM_TASKS}"
        rows.append([entry.label, soon, late, found.num_begun_twice, entry.facts.recovery])
        if entry.name == OURS:
            name = f"(b) finished within {SOON_S:.0f} s of a kill, of {NUM_TASKS}"
            bench.report.figure(Figure(name, found.num_soon, NUM_TASKS))
    windows = [f"within {seconds:.0f} s" for seconds in (SOON_S, bench.sizes.recovery_s)]
    columns = ["contender", *windows, "begun twice", "what brings them back"]
    title = f"(b) {NUM_TASKS} tasks of {SECONDS:.0f} s, their worker killed and started again"
    bench.report.table(title, columns, rows)


def _recover(bench: Bench, entry: Entry) -> Recovery:
    tasks = [Job(NUM_TASKS + number, SECONDS) for number in range(NUM_TASKS)]
    indices, last = [job.index for job in tasks], 2 * NUM_TASKS
    with Session(entry, bench.cache / "kill", last + 1) as session:
        ledger = session.ledger
        session.start_work()
        _check_works(session, range(NUM_TASKS))
        session.submit(tasks, _WITHIN_S)
        if not wait_until(lambda: all(row.begun_at for row in ledger.rows(indices)), _WITHIN_S):
            raise TimeoutError("its worker did not begin all tasks")
        time.sleep(KILL_AFTER_S)
        killed_at = time.monotonic()
        session.kill_worker()
        session.start_work()
        _check_works(session, range(last, last + 1))
        left_s = killed_at + bench.sizes.recovery_s - time.monotonic()
        wait_until(lambda: ledger.num_done(indices) == NUM_TASKS, left_s)
        rows = ledger.rows(indices)
    return Recovery(
        num_done_within(rows, killed_at, SOON_S),
        num_done_within(rows, killed_at, bench.sizes.recovery_s),
        sum(row.num_runs > 1 for row in rows),
    )


def _check_works(session: Session, indices: range) -> None:
    """Have tasks done that end at once; TimeoutError when they are not."""
    session.submit([Job(index) for index in indices], _WITHIN_S)
    if not wait_until(lambda: session.ledger.num_done(indices) == len(indices), _WITHIN_S):
        raise TimeoutError("its worker does nothing")
