"""A contender in a process of its own: what starts it, and what runs inside.

    python -m benchmarks.engine.host NAME SETTINGS

The two ends speak lines of JSON over the child's stdin and stdout. What libraries print goes to a
log. The child's environment decides the number of threads, before torch is imported.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.engine.contenders.base import Contender, Job, Run, Settings

LINK_DELAY_VARIABLE = "PLAIT_TEST_LINK_DELAY_S"
_CLOSE_WITHIN_S = 20.0
_LOG_TAIL_CHARS = 2000


class ContenderFailed(RuntimeError):
    """It could not be set up, or a run failed; the text has the end of its log."""


class Host:
    """The near end: starts the process, which then loads, and asks it for runs."""

    def __init__(self, name: str, settings: Settings, logs: Path) -> None:
        self.name, self.settings = name, settings
        logs.mkdir(parents=True, exist_ok=True)
        self._log = logs / f"{name}-{os.getpid()}-{_count()}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __spec__.name, name, json.dumps(asdict(settings))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **_environment(settings)},
                text=True,
            )

    def wait_ready(self) -> None:
        """Return when it is loaded.

        Raises:
            ContenderFailed: it could not be.
        """
        self._receive()

    def run(self, jobs: Sequence[Job]) -> Run:
        """Let it do the jobs.

        Raises:
            ContenderFailed: it did not, and will not any more.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its last words are in the log
            self._process.stdin.write(json.dumps([asdict(job) for job in jobs]) + "\n")
            self._process.stdin.flush()
        return Run(**self._receive())

    def close(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_CLOSE_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": self._tail()}
        if "error" in answer:
            self.close()
            raise ContenderFailed(f"{self.name}: {answer['error']}")
        return answer

    def _tail(self) -> str:
        self._process.wait()
        said = self._log.read_text(errors="replace")[-_LOG_TAIL_CHARS:]
        return f"ended with {self._process.returncode}:\n{said}"


_started: list[None] = []


def _count() -> int:
    _started.append(None)
    return len(_started)


def _environment(settings: Settings) -> dict[str, str]:
    given = {
        "OMP_NUM_THREADS": str(settings.num_threads),
        "MKL_NUM_THREADS": str(settings.num_threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    if settings.link_delay_s:
        given[LINK_DELAY_VARIABLE] = str(settings.link_delay_s)
    return given


def load(name: str, settings: Settings) -> Contender:
    """The contender in the file of that name."""
    module = importlib.import_module(f"benchmarks.engine.contenders.{name}")
    contender: Contender = module.Contender(settings)
    return contender


def main(name: str, settings: Settings) -> None:
    """The far end: load the contender, then one run a line until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        contender = load(name, settings)
        say({})
        for line in sys.stdin:
            say(asdict(contender.run([Job(**job) for job in json.loads(line)])))
        contender.close()
    except Exception as error:  # noqa: BLE001  # whatever it is, the near end tells it
        traceback.print_exc()
        say({"error": f"{type(error).__name__}: {error}"})
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1], Settings(**json.loads(sys.argv[2])))
