"""Which layers each stage runs, with what that is expected to cost; made by ``partition``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from handlers.pipeline import bubble
from handlers.pipeline.part_costs import Cut

_KIB = 1024


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage."""

    cut: Cut
    #: Predicted for a step of the plan's rows.
    seconds: float
    weight_bytes: int
    #: Keys and values of one block, all layers of the stage together.
    kv_bytes_per_block: int
    #: What the stage may take; None: not known. Stages on one device share it.
    free_bytes: int | None

    @property
    def num_layers(self) -> int:
        return self.cut[1] - self.cut[0]


@dataclass(frozen=True, slots=True)
class Plan:
    """A cut into stages."""

    stages: tuple[StagePlan, ...]
    #: Rows of the steps that the seconds are for.
    rows: int
    #: Steps in flight that the bubble is for.
    num_lanes: int
    #: Blocks of keys and values that every stage was to have room for.
    num_blocks: int
    #: Seconds of all links of a round.
    latency_s: float
    #: Whether the seconds come from measurements; if not they only compare the stages.
    is_measured: bool
    #: Whether the cut was given rather than chosen.
    is_explicit: bool

    @property
    def cuts(self) -> list[Cut]:
        return [stage.cut for stage in self.stages]

    @property
    def counts(self) -> list[int]:
        """Decoder layers of each stage."""
        return [stage.num_layers for stage in self.stages]

    @property
    def seconds(self) -> tuple[float, ...]:
        """Predicted for a step, by stage."""
        return tuple(stage.seconds for stage in self.stages)

    @property
    def slowest_s(self) -> float:
        """Predicted for a step on the slowest stage, which sets the pace."""
        return max(self.seconds)

    @property
    def cycle_s(self) -> float:
        """Predicted until every lane has made a step."""
        return bubble.cycle_s(self.seconds, self.num_lanes, self.latency_s)

    @property
    def idle_share(self) -> float:
        """The predicted bubble, 0 to 1."""
        return bubble.idle_share(self.seconds, self.num_lanes, self.latency_s)

    def describe(self) -> str:
        """A few lines for people."""
        how = "measured" if self.is_measured else "estimated"
        chosen = "given" if self.is_explicit else "chosen"
        first = (
            f"{sum(self.counts)} layers in {len(self.stages)} stages, cut {chosen}; {how} at "
            f"{self.rows} rows: {_ms(self.cycle_s)} a round of {self.num_lanes} lanes, "
            f"bubble {self.idle_share:.0%}"
        )
        return "\n".join([first, *(_line(*each) for each in enumerate(self.stages))])

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for the status of a replica."""
        return {
            "layers": self.counts,
            "predicted_s": list(self.seconds),
            "predicted_idle_share": self.idle_share,
            "weight_bytes": [stage.weight_bytes for stage in self.stages],
            "kv_bytes_per_block": [stage.kv_bytes_per_block for stage in self.stages],
            "free_bytes": [stage.free_bytes for stage in self.stages],
            "rows": self.rows,
            "num_lanes": self.num_lanes,
            "is_measured": self.is_measured,
            "is_explicit": self.is_explicit,
        }


def _line(index: int, stage: StagePlan) -> str:
    start, end = stage.cut
    memory = f"{size(stage.weight_bytes)} weights, {size(stage.kv_bytes_per_block)} a block"
    free = "" if stage.free_bytes is None else f", {size(stage.free_bytes)} free"
    layers = f"layers {start} to {end - 1} ({stage.num_layers})"
    return f"  stage {index}: {layers}, {_ms(stage.seconds)} a step, {memory}{free}"


def size(num_bytes: float) -> str:
    """Bytes for people: ``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB"):
        if abs(num_bytes) < _KIB:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= _KIB
    return f"{num_bytes:.1f} GiB"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"
