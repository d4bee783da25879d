"""What is written down about scaling: how much work there is, what replicas were measured to do,
and what was decided."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from math import ceil
from typing import Any, Final

from handlers.model_config import ModelConfig
from scheduler.records import Record

#: Starts of replicas that are remembered of a model on one kind of device.
MAX_STARTS: Final = 20
#: Decisions that are kept of a model.
MAX_DECISIONS: Final = 500


def percentile_90(values: Iterable[float]) -> float | None:
    """The least value that nine tenths do not exceed; None: there are none."""
    ordered = sorted(values)
    return ordered[ceil(0.9 * len(ordered)) - 1] if ordered else None


class ModelLoad(Record, frozen=True):
    """The work there is for a model, as the store has it; costs are weighted tokens."""

    #: Queued tasks that their tenants' limits allow to run now, and their estimated cost.
    num_queued: int = 0
    queued_cost: float = 0.0
    #: Estimated cost of all that is queued.
    all_queued_cost: float = 0.0
    num_running: int = 0
    #: Estimated cost of what runs, and what of it is done.
    running_cost: float = 0.0
    running_done: float = 0.0
    #: Cost of everything that was ever done, running work included.
    served_cost: float = 0.0


class Measure(Record, frozen=True):
    """What replicas of a model were measured to do on one kind of device."""

    model: str
    #: As runners report it.
    device_kind: str
    #: Weighted tokens a second of one slot; None: not measured.
    cost_per_slot: float | None = None
    #: Whether every slot was busy meanwhile; if not, each is served faster than it will be then.
    was_full: bool = False
    #: Seconds from a claim to the first chunk, the 90th percentile; None: not measured.
    first_chunk_s: float | None = None
    #: Cost of tasks that succeeded, as a part of what was estimated; None: none has.
    used_ratio: float | None = None
    #: Seconds that the last replicas took from being placed to being ready, oldest first.
    start_times_s: tuple[float, ...] = ()

    @property
    def start_s(self) -> float | None:
        """The 90th percentile of the starts; None: there were none."""
        return percentile_90(self.start_times_s)


@dataclass(frozen=True, slots=True)
class Wishes:
    """How many replicas there should be, by who says so and model."""

    #: What operators have set; it wins.
    operators: Mapping[str, int]
    #: What was decided from the work.
    scaled: Mapping[str, int]

    def of(self, config: ModelConfig) -> int:
        """Of one model."""
        if config.scale is None:
            return self.operators.get(config.name, config.num_replicas)
        decided = self.scaled.get(config.name, config.num_replicas)
        return self.operators.get(config.name, decided)

    def by(self, config: ModelConfig) -> str:
        """Who says so: "operator", "work" or "config"."""
        if config.name in self.operators:
            return "operator"
        return "config" if config.scale is None else "work"

    def is_automatic(self, config: ModelConfig) -> bool:
        """Whether the work says how many."""
        return self.by(config) == "work"


class WarmUp(Record, frozen=True):
    """What is known of how long a replica takes that is being started."""

    #: Seconds that nine of ten starts took at most; None: none was measured.
    start_s: float | None = None
    num_starts: int = 0
    device_kind: str = ""
    #: When it was decided to start it; None: it is not known.
    ordered_at: float | None = None
    #: Tasks that the replicas that are wanted work on at once.
    num_slots: int = 0

    def left_s(self, now: float) -> float | None:
        """Seconds until it is likely to be ready; None: nobody can tell."""
        if self.start_s is None:
            return None
        age_s = 0.0 if self.ordered_at is None else now - self.ordered_at
        return max(0.0, self.start_s - age_s)

    def told(self) -> str:
        """What starts took, as a part of a sentence; empty: none was measured."""
        if self.start_s is None:
            return ""
        where = self.device_kind or "its devices"
        return (
            f"; nine of ten starts took {self.start_s:.0f} s at most "
            f"(of {self.num_starts} on {where})"
        )


def warm_up(
    measures: Iterable[Measure], decisions: Iterable[ScaleDecision], num_slots: int
) -> WarmUp:
    """Of the slowest kind of device; ``decisions`` are the model's, newest first."""
    known = [m for m in measures if m.start_s is not None]
    slowest = max(known, key=lambda m: m.start_s or 0.0, default=None)
    ordered_at = next((d.decided_at for d in decisions if d.action == Action.UP.value), None)
    if slowest is None:
        return WarmUp(ordered_at=ordered_at, num_slots=num_slots)
    num_starts = len(slowest.start_times_s)
    return WarmUp(slowest.start_s, num_starts, slowest.device_kind, ordered_at, num_slots)


class Action(Enum):
    """What a decision does to the number of replicas."""

    UP = "up"
    DOWN = "down"
    NOTHING = "nothing"


class ScaleDecision(Record, frozen=True):
    """One decision about a model, or several in a row that came to the same."""

    model: str
    #: From 1, for each model.
    number: int
    #: When it was made, first and last, in seconds since the epoch.
    decided_at: float
    last_at: float
    #: How many times in a row.
    num_times: int
    #: "up", "down" or "nothing".
    action: str
    #: Replicas wanted before and after it.
    num_before: int
    num_after: int
    #: What decided it, in a word, and as a sentence.
    reason: str
    message: str
    #: What it was decided from, the last time; JSON.
    inputs: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ScaleStory:
    """How many replicas of a model should run, who says so, and how it came about."""

    wishes: Wishes
    measures: tuple[Measure, ...]
    #: Newest first.
    decisions: tuple[ScaleDecision, ...]
