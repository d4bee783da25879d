"""What all parts of one run share: how much is done, who takes part, and the report."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.noise import Patience
from benchmarks.queue.host import ContenderFailed
from benchmarks.queue.servers import ServerMissing
from benchmarks.report import Report

#: What ends a contender's part in a run, and not the run.
FAILURES = (ContenderFailed, ServerMissing, TimeoutError, subprocess.SubprocessError)
_LOOK_S = 0.02


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is done."""

    rounds: int
    #: Tasks submitted one by one, and as many together; then all are drained.
    num_each: int
    #: Tasks whose latency is measured.
    num_paced: int
    #: Seconds after a kill that are waited for tasks to come back.
    recovery_s: float
    num_tenants: tuple[int, ...]
    #: Tasks that are queued while tenants grow.
    num_shared: int
    num_queued: tuple[int, ...]
    num_claims: int


@dataclass(frozen=True, slots=True)
class Bench:
    sizes: Sizes
    cache: Path
    #: Names of contenders.
    chosen: Sequence[str]
    report: Report
    patience: Patience


def wait_until(is_so: Callable[[], bool], within_s: float) -> bool:
    """Whether it became so in time."""
    deadline = time.monotonic() + within_s
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_S)
    return True
