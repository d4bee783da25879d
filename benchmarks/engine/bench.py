"""What all parts of one run share: the model, the machine, the options and the report."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.engine import limits
from benchmarks.engine.contenders.base import Job, Settings
from benchmarks.engine.figures import Outcome, num_equal
from benchmarks.engine.host import Host
from benchmarks.engine.measure import Entry, contest
from benchmarks.engine.report import Report
from benchmarks.engine.workload import Shape, mixed_prompts, model_folder
from benchmarks.noise import Patience

#: The contender that is Plait's engine.
OURS = "plait"
#: Of the time a run may take, the share after which everything is measured once only.
_LATE_RATIO = 0.7


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is done."""

    shape: Shape
    num_tokens: int
    mean_prompt: int
    #: The same where the processor has no bfloat16 matrix instructions: prompts take minutes.
    slow_mean_prompt: int
    rounds: int
    batches: tuple[int, ...]
    #: The batch that ratios are judged at.
    main_batch: int
    #: Rows of a lane where lanes are compared.
    rows_per_lane: int
    num_stages: tuple[int, ...]
    link_delays_s: tuple[float, ...]
    #: Tokens of the prompt that arrives late, and tokens the others have by then.
    late_prompt: int
    late_after: int
    minutes: float


@dataclass
class Bench:
    sizes: Sizes
    cache: Path
    num_threads: int
    report: Report
    patience: Patience
    began: float = field(default_factory=time.monotonic)

    @property
    def rounds(self) -> int:
        late = time.monotonic() - self.began > _LATE_RATIO * 60 * self.sizes.minutes
        return 1 if late else self.sizes.rounds

    def settings(self, dtype: str, **more: Any) -> Settings:
        folder = model_folder(self.sizes.shape, self.cache)
        given: dict[str, Any] = {"num_threads": self.num_threads, **more}
        return Settings(model=str(folder), dtype=dtype, **given)

    @contextmanager
    def hosts(self, wanted: Mapping[str, tuple[str, Settings]]) -> Iterator[dict[str, Host]]:
        """Contenders by label, each loaded in a process of its own.

        Those of others load together. Ours load one by one when all is quiet, because the
        engine times the model's layers to cut it.
        """
        hosts: dict[str, Host] = {}
        with ExitStack() as stack:

            def start(label: str) -> Host:
                name, settings = wanted[label]
                host = stack.enter_context(Host(name, settings, self.cache / "logs"))
                hosts[label] = host
                return host

            theirs = [label for label, (name, _) in wanted.items() if name != OURS]
            for host in [start(label) for label in theirs]:
                host.wait_ready()
            for label in [label for label in wanted if label not in theirs]:
                self.patience.wait()
                start(label).wait_ready()
            yield {label: hosts[label] for label in wanted}

    def prompts(self, num: int, dtype: str) -> list[list[int]]:
        return mixed_prompts(num, self.mean_prompt(dtype), self.sizes.shape.vocab_size)

    def mean_prompt(self, dtype: str) -> int:
        is_fast = limits.has_instructions_for(dtype)
        return self.sizes.mean_prompt if is_fast else self.sizes.slow_mean_prompt

    def jobs(self, num: int, dtype: str, num_tokens: int | None = None) -> list[Job]:
        num_tokens = num_tokens or self.sizes.num_tokens
        return [Job(tuple(prompt), num_tokens) for prompt in self.prompts(num, dtype)]

    def contest(
        self, entries: Mapping[str, Entry], rounds: int | None = None
    ) -> dict[str, Outcome]:
        return contest(entries, rounds or self.rounds, self.patience)

    def equal(self, where: str, dtype: str, got: Outcome, expected: Sequence[Sequence[int]]) -> str:
        """How many jobs got the expected tokens; in float32 all must."""
        same, total = num_equal(got.tokens, expected), len(expected)
        if dtype == "float32":
            self.report.num_compared += total
            if same < total:
                self.report.wrong.append(f"{where} {total - same} of {total}")
        return f"{same}/{total}"
