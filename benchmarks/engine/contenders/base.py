"""What a contender is: something that continues prompts greedily and says when each token came.

A contender lives in a process of its own (``host.py``), is loaded once and then run many times,
in turn with the others. A file of this folder with a class ``Contender`` is one; the file's name
is what it is called by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Settings:
    """How a contender is set up."""

    model: str
    dtype: str = "float32"
    #: Threads of each of its processes that compute.
    num_threads: int = 1
    #: Processes the model is cut over.
    num_stages: int = 1
    #: Micro-batches in flight; None: the engine chooses.
    num_lanes: int | None = None
    max_batch: int = 8
    max_context: int = 512
    #: What is added to each hop between stages, in seconds.
    link_delay_s: float = 0.0
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Job:
    """A prompt and how many tokens to add."""

    prompt: tuple[int, ...]
    num_tokens: int
    #: A late job is given when every other one has so many tokens; the run ends with it.
    after_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """What came out, job by job."""

    tokens: list[list[int]]
    #: Seconds from the start of the run to each token.
    arrivals: list[list[float]]
    #: When the late job was given, in seconds from the start; None without one.
    late_at_s: float | None = None
    #: Share of the time at which each stage computed while all jobs were decoding.
    stage_busy: list[float] = field(default_factory=list)


class Contender(Protocol):
    """Is made with the settings; a run does not depend on the runs before."""

    def run(self, jobs: Sequence[Job]) -> Run:
        """Continue all prompts, none of which has a token that ends it."""

    def close(self) -> None:
        """Free what is held."""


def num_tokens_of(jobs: Sequence[Job]) -> int:
    """The number of tokens all jobs ask for; contenders that take one batch need it equal."""
    (num_tokens,) = {job.num_tokens for job in jobs}
    if any(job.after_tokens for job in jobs):
        raise ValueError("this contender takes all jobs at once")
    return num_tokens
