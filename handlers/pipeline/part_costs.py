"""What the parts of a decoder cost on one device: seconds of a step, and bytes.

A stage's time for a step is that of its layers, of the embedding on the first stage and of final
norm and head on the last, and a fixed share for what is done once whatever the layers: masks,
rotary angles, the call itself. A ``Profile`` holds times as they were measured, at a few numbers
of rows; ``Costs`` are for one number of rows.

Where nothing was measured, time is counted in weights read: a decode step reads every weight
once, whatever it computes. Such seconds are good for comparing parts, not as a prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from handlers.pipeline.step import BLOCK

#: The layers of one stage: from (included) to (excluded).
Cut = tuple[int, int]

#: Bytes a second at which an estimate lets weights be read: one core of a server.
NOMINAL_BYTES_PER_S: Final = 10e9


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a decoder."""

    #: Of one step.
    seconds: float
    weight_bytes: int = 0
    #: Keys and values of one block of positions.
    kv_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Costs:
    """A decoder's parts on one device, for steps of one number of rows."""

    #: One for each decoder layer.
    layers: tuple[Part, ...]
    #: The token embedding; looked up, so it costs memory more than time.
    embedding: Part
    #: The output head with the final norm and whatever follows, such as drawing.
    head: Part
    #: Seconds of a step on every stage, whatever its layers.
    fixed_s: float = 0.0
    #: Weights that are both embedding and head; a stage that has both holds them once.
    tied_bytes: int = 0
    is_measured: bool = False

    @classmethod
    def of_weights(cls, layers: Sequence[int], embedding: int, head: int) -> Costs:
        """From sizes in bytes, time in proportion to them; nothing is said of keys and values."""

        def part(size: int) -> Part:
            return Part(size / NOMINAL_BYTES_PER_S, size)

        return cls(tuple(part(size) for size in layers), Part(0.0, embedding), part(head))

    @classmethod
    def estimate(cls, config: Any, bytes_per_weight: int = 2) -> Costs:
        """From the attributes of a decoder's configuration, counting matrices only."""
        hidden: int = config.hidden_size
        inner: int = getattr(config, "intermediate_size", None) or 4 * hidden
        heads: int = config.num_attention_heads
        key_heads: int = getattr(config, "num_key_value_heads", None) or heads
        head_size: int = getattr(config, "head_dim", None) or hidden // heads
        experts: int = getattr(config, "num_local_experts", None) or 1
        attention = 2 * hidden * head_size * (heads + key_heads)
        layer = (attention + 3 * hidden * inner * experts) * bytes_per_weight
        table: int = config.vocab_size * hidden * bytes_per_weight
        costs = cls.of_weights((layer,) * config.num_hidden_layers, table, table)
        kv_bytes = kv_bytes_per_block(config, bytes_per_weight)
        layers = tuple(replace(part, kv_bytes=kv_bytes) for part in costs.layers)
        is_tied = bool(getattr(config, "tie_word_embeddings", False))
        return replace(costs, layers=layers, tied_bytes=table if is_tied else 0)

    @property
    def seconds(self) -> float:
        """Of a step through the whole decoder on this device."""
        return self.seconds_of((0, len(self.layers)))

    def seconds_of(self, cut: Cut) -> float:
        """Of a step through a stage that runs the layers ``cut``."""
        return sum(part.seconds for part in self.layers[slice(*cut)]) + self.seconds_beside(cut)

    def seconds_beside(self, cut: Cut) -> float:
        """Of a step through that stage, its layers left out."""
        embedding = self.embedding.seconds if cut[0] == 0 else 0.0
        head = self.head.seconds if cut[1] == len(self.layers) else 0.0
        return self.fixed_s + embedding + head

    def weight_bytes_of(self, cut: Cut) -> int:
        """Of the weights that a stage with the layers ``cut`` holds."""
        return sum(part.weight_bytes for part in self.layers[slice(*cut)]) + self.bytes_beside(cut)

    def bytes_beside(self, cut: Cut) -> int:
        """Of the weights that stage holds, its layers left out."""
        is_first, is_last = cut[0] == 0, cut[1] == len(self.layers)
        table = self.embedding.weight_bytes if is_first else 0
        head = self.head.weight_bytes if is_last else 0
        return table + head - (self.tied_bytes if is_first and is_last else 0)

    def kv_bytes_of(self, cut: Cut) -> int:
        """Of the keys and values of one block on a stage with the layers ``cut``."""
        return sum(part.kv_bytes for part in self.layers[slice(*cut)])

    def scaled(self, factor: float) -> Costs:
        """The same on a device that takes ``factor`` times as long."""

        def slow(part: Part) -> Part:
            return replace(part, seconds=part.seconds * factor)

        return replace(
            self,
            layers=tuple(map(slow, self.layers)),
            embedding=slow(self.embedding),
            head=slow(self.head),
            fixed_s=self.fixed_s * factor,
        )


@dataclass(frozen=True, slots=True)
class PartProfile:
    """A part as it was measured."""

    #: Of a decode step, for each number of rows of the profile.
    seconds: tuple[float, ...]
    #: Of one row of the profile's prefill chunk.
    prefill_s: float
    weight_bytes: int
    kv_bytes: int = 0

    def at(self, rows: int, measured_at: tuple[int, ...]) -> Part:
        return Part(interpolate(rows, measured_at, self.seconds), self.weight_bytes, self.kv_bytes)


@dataclass(frozen=True, slots=True)
class Profile:
    """What one device was measured to take for a decoder's parts."""

    #: The torch device: "cpu", "cuda:0".
    device: str
    #: Names the memory that ``free_bytes`` is of: stages with the same name share it.
    memory: str
    #: What this process may still take.
    free_bytes: int
    #: torch dtype name.
    dtype: str
    #: Numbers of rows the decode steps were timed at, rising.
    rows: tuple[int, ...]
    #: Tokens of the prefill chunk.
    prefill_chunk: int
    #: Kinds of layers that differ in type or size.
    kinds: tuple[PartProfile, ...]
    #: For each decoder layer, its kind.
    kind_of_layer: tuple[int, ...]
    embedding: PartProfile
    head: PartProfile
    #: What a step costs every stage, whatever its layers.
    fixed: PartProfile
    #: Weights that are both embedding and head.
    tied_bytes: int = 0
    #: Seconds the measuring took.
    took_s: float = 0.0

    def costs(self, rows: int) -> Costs:
        """For steps of ``rows`` rows; between the numbers measured it is a straight line."""
        kinds = [kind.at(rows, self.rows) for kind in self.kinds]
        return Costs(
            tuple(kinds[kind] for kind in self.kind_of_layer),
            self.embedding.at(rows, self.rows),
            self.head.at(rows, self.rows),
            self.fixed.at(rows, self.rows).seconds,
            self.tied_bytes,
            is_measured=True,
        )

    def to_document(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Profile:
        """From :meth:`to_document`'s values, after they went through JSON."""

        def part(values: dict[str, Any]) -> PartProfile:
            return PartProfile(**{**values, "seconds": tuple(values["seconds"])})

        return cls(
            **{
                **document,
                "rows": tuple(document["rows"]),
                "kinds": tuple(map(part, document["kinds"])),
                "kind_of_layer": tuple(document["kind_of_layer"]),
                "embedding": part(document["embedding"]),
                "head": part(document["head"]),
                "fixed": part(document["fixed"]),
            }
        )


def kv_bytes_per_block(config: Any, bytes_per_number: int) -> int:
    """What one layer keeps of a block of positions, by a decoder's configuration."""
    heads: int = config.num_attention_heads
    key_heads: int = getattr(config, "num_key_value_heads", None) or heads
    head_size: int = getattr(config, "head_dim", None) or config.hidden_size // heads
    return 2 * key_heads * head_size * BLOCK * bytes_per_number


def interpolate(x: float, known: Sequence[float], values: Sequence[float]) -> float:
    """``values`` at ``x``: straight lines between the known, level before, going on behind.

    A smaller step is never taken to be cheaper than the smallest measured, since its weights are
    read all the same; nor is a larger one cheaper than the largest.
    """
    if len(known) == 1 or x <= known[0]:
        return values[0]
    index = next((i for i, each in enumerate(known[1:], 1) if x <= each), len(known) - 1)
    slope = (values[index] - values[index - 1]) / (known[index] - known[index - 1])
    found = values[index - 1] + slope * (x - known[index - 1])
    return max(found, values[-1]) if x > known[-1] else found
