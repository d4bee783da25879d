"""What a crew is told when it is put together, and what it tells of its stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from handlers.pipeline.channel import Message
from handlers.pipeline.partition import Cut


class CrewLost(RuntimeError):
    """The stages cannot be brought up again; the process has no more use."""


class Unfit(ValueError):
    """The model and its configuration do not fit together; says what to change."""


@dataclass(frozen=True, slots=True)
class Orders:
    """What every stage is told when it loads, apart from its layers."""

    model_dir: str
    dtype: str
    #: One torch device for each stage.
    devices: tuple[str, ...]
    #: Arguments of ``kernels.prepare``.
    kernels: Mapping[str, Any]
    num_slots: int
    max_context: int
    vocabulary_size: int
    eos_token_ids: tuple[int, ...]
    #: Whether stages are measured before they are cut.
    is_measured: bool
    startup_timeout_s: float
    #: Whether a process stands by for the next stage that is lost.
    has_standby: bool = True


@dataclass(frozen=True, slots=True)
class Ready:
    """All stages stand connected with empty caches of ``num_blocks`` blocks."""

    epoch: int
    num_blocks: int


@dataclass(frozen=True, slots=True)
class Done:
    """A stage has done a step; the last one tells what it drew."""

    stage: int
    number: int
    seconds: float
    #: JSON values of the draws, None from the other stages.
    draws: list[Any] | None


@dataclass(frozen=True, slots=True)
class Broken:
    """The epoch is over: every step in flight and every cache is lost."""

    stage: int
    reason: str


Event = Ready | Done | Broken

#: The layers of each stage, from the stages' profiles (JSON values; None: not measured).
Planner = Callable[[Sequence[Message | None]], Sequence[Cut]]
#: How many blocks each stage holds, from what the stages said when they had loaded.
Budget = Callable[[Sequence[Message]], int]
