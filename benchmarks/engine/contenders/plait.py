"""Plait's pipelined engine, driven through the contract TorchServe's handler drives it by."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import yaml

from benchmarks.engine.contenders import base
from benchmarks.engine.contenders.base import Job, Run, Settings
from handlers import model_config
from handlers.engines.base import Engine, Place
from handlers.lifecycle import start_engine
from handlers.model_config import ModelConfig
from handlers.wire import Chunk, Failure, Finish, GenerationRequest

_WAIT_S = 1.0


class Contender(base.Contender):
    def __init__(self, settings: Settings) -> None:
        self._engine = start_engine(_config(settings), Place())
        self._num_stages, self._num_runs = settings.num_stages, 0

    def run(self, jobs: Sequence[Job]) -> Run:
        self._num_runs += 1
        name = f"run{self._num_runs}"
        return _Watch(self._engine, self._num_stages, jobs, name).run()

    def close(self) -> None:
        self._engine.close()


class _Watch:
    """One run: gives the jobs to the engine and notes what comes, when."""

    def __init__(self, engine: Engine, num_stages: int, jobs: Sequence[Job], name: str) -> None:
        self._engine, self._num_stages, self._jobs = engine, num_stages, jobs
        self._ids = [f"{name}-{index}" for index in range(len(jobs))]
        self._early = [index for index, job in enumerate(jobs) if not job.after_tokens]
        self._late = [index for index, job in enumerate(jobs) if job.after_tokens]
        self._tokens: list[list[int]] = [[] for _ in jobs]
        self._arrivals: list[list[float]] = [[] for _ in jobs]
        self._open: set[int] = set()
        self._late_at_s: float | None = None
        #: (moment, processor seconds of each child): when all decode, and when the first is done.
        self._busy_marks: list[tuple[float, dict[int, float]]] = []

    def run(self) -> Run:
        self._began = time.perf_counter()
        for index in self._early:
            self._submit(index)
        while self._open:
            self._engine.wait(_WAIT_S)
            for index in sorted(self._open):
                self._take(index)
            self._mark()
            self._submit_late()
            if self._late and self._late_at_s is not None and not self._open & set(self._late):
                for index in self._open:
                    self._engine.cancel(self._ids[index])
                break
        return Run(self._tokens, self._arrivals, self._late_at_s, self._stage_busy())

    def _submit(self, index: int) -> None:
        job = self._jobs[index]
        request = GenerationRequest(
            prompt_token_ids=job.prompt, max_new_tokens=job.num_tokens, ignore_eos=True
        )
        self._engine.submit(self._ids[index], request)
        self._open.add(index)

    def _submit_late(self) -> None:
        if not self._late or self._late_at_s is not None:
            return
        fewest = min(len(self._tokens[index]) for index in self._early)
        if fewest >= max(self._jobs[index].after_tokens for index in self._late):
            self._late_at_s = time.perf_counter() - self._began
            for index in self._late:
                self._submit(index)

    def _take(self, index: int) -> None:
        for answer in self._engine.take(self._ids[index]):
            if isinstance(answer, Chunk):
                now = time.perf_counter() - self._began
                self._tokens[index] += answer.token_ids
                self._arrivals[index] += [now] * len(answer.token_ids)
            elif isinstance(answer, Failure):
                raise RuntimeError(f"the engine failed a request: {answer}")
            elif isinstance(answer, Finish):
                self._open.discard(index)

    def _mark(self) -> None:
        counts = [len(tokens) for tokens in self._tokens]
        if not self._busy_marks and min(counts) > 0:
            self._busy_marks.append(_child_seconds())
        all_open = len(self._open) == len(self._jobs)
        if len(self._busy_marks) == 1 and not all_open:
            self._busy_marks.append(_child_seconds())

    def _stage_busy(self) -> list[float]:
        if len(self._busy_marks) != 2:
            return []
        (began, before), (ended, after) = self._busy_marks
        took = ended - began
        shares = {pid: (after[pid] - before[pid]) / took for pid in before if pid in after}
        # A process that stands by for a stage that dies does nothing meanwhile.
        most = sorted(shares, key=lambda pid: shares[pid])[-self._num_stages :]
        return [share for pid, share in shares.items() if pid in most]


def _child_seconds() -> tuple[float, dict[int, float]]:
    """Now, and what each child has computed; with one thread each they work or sleep."""
    times = {child.pid: child.cpu_times() for child in psutil.Process().children()}
    return time.perf_counter(), {pid: each.user + each.system for pid, each in times.items()}


def _config(settings: Settings) -> ModelConfig:
    """The settings as a model's YAML, so that every other key has its default."""
    document = {
        "deviceType": settings.device,
        "parallelType": "pp",
        "torchrun": {"nproc-per-node": settings.num_stages, "rdzv-endpoint": "localhost:0"},
        "continuousBatching": True,
        "batchSize": settings.max_batch,
        "startupTimeout": 300,
        "plait": {
            "task": "generate",
            "source": {"folder": str(Path(settings.model).absolute())},
            "engine": "pipelined",
            "dtype": settings.dtype,
            "max_context": settings.max_context,
            "lanes": settings.num_lanes or "auto",
            # The same prompts come again and again; what is measured is their computation.
            "prefix_cache": False,
        },
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.yaml"
        path.write_text(yaml.safe_dump(document))
        return model_config.load(path)
