"""A contender's process: what starts it, and what runs inside.

    python -m benchmarks.queue.host NAME ROLE SETUP

One with the role "submit" takes orders: lines of JSON over stdin, each answered with the seconds
that it took. One with the role "work" works until it is told to stop. Both end when stdin does, so
that none outlives the benchmark. What libraries print goes to a log.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.queue import servers
from benchmarks.queue.contenders.base import Job, Setup
from benchmarks.queue.roster import module

SUBMIT, WORK = "submit", "work"
_LOG_TAIL_CHARS = 2000


class ContenderFailed(RuntimeError):
    """It could not be set up, or an order failed or took too long; has the end of its log."""


class Host:
    """The near end."""

    def __init__(self, name: str, role: str, setup: Setup) -> None:
        self._name = f"{name} ({role})"
        self._log = Path(setup.folder) / f"{role}.log"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __spec__.name, name, role, json.dumps(asdict(setup))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )

    def wait_ready(self, within_s: float = servers.START_WITHIN_S) -> None:
        """Until the contender is made; raises ContenderFailed."""
        self._receive(within_s)

    def order(self, what: str, jobs: Sequence[Job], within_s: float, pace_s: float = 0.0) -> float:
        """Have it do something; the seconds it took. Raises ContenderFailed."""
        assert self._process.stdin is not None
        document = {"what": what, "jobs": [asdict(job) for job in jobs], "pace_s": pace_s}
        with contextlib.suppress(BrokenPipeError):  # its last words are in the log
            self._process.stdin.write(json.dumps(document).encode() + b"\n")
            self._process.stdin.flush()
        return float(self._receive(within_s)["took_s"])

    def close(self) -> None:
        """Let it end, or kill it when it does not."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        servers.end(self._process)

    def kill(self) -> None:
        """``kill -9``."""
        servers.kill(self._process)

    def _receive(self, within_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], within_s)
        line = self._process.stdout.readline() if ready else b""
        answer: dict[str, Any] = json.loads(line) if line else {"error": "no answer"}
        if "error" in answer:
            said = self._log.read_text(errors="replace")[-_LOG_TAIL_CHARS:]
            raise ContenderFailed(f"{self._name}: {answer['error']}\n{said}")
        return answer


def main(name: str, role: str, setup: Setup) -> None:
    """The far end."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        contender = module(name).Contender(setup)
        say({})
        if role == WORK:
            threading.Thread(target=_end_with_stdin, daemon=True).start()
            contender.work()
        for line in sys.stdin:
            say(_carry_out(contender, json.loads(line)))
        contender.close()
    except Exception as error:  # noqa: BLE001  # whatever it is, the near end tells it
        traceback.print_exc()
        say({"error": f"{type(error).__name__}: {error}"})
        sys.exit(1)


def _carry_out(contender: Any, order: dict[str, Any]) -> dict[str, float]:
    jobs = [Job(**job) for job in order["jobs"]]
    began = time.perf_counter()
    match order["what"]:
        case "submit":
            contender.submit(jobs, order["pace_s"])
        case "submit_together":
            contender.submit_together(jobs)
        case "work":
            # Of a contender that is embedded: what submits also works.
            threading.Thread(target=contender.work, daemon=True).start()
    return {"took_s": time.perf_counter() - began}


def _end_with_stdin() -> None:
    while os.read(0, 1024):
        pass
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Setup(**json.loads(sys.argv[3])))
