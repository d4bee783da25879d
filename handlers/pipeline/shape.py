"""What a pipeline has room for, as the schedule needs to know it."""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm

from handlers.pipeline.step import BLOCK


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes that stages were loaded with, and how they are to be used.

    Raises:
        ValueError: the blocks do not hold one whole context and one block more.
    """

    num_stages: int
    #: Slots, so sequences that run at once.
    max_rows: int
    #: Most tokens of a prefill step; in exact mode, all that it ever has.
    prefill_chunk: int
    #: Most tokens of a sequence.
    max_context: int
    #: Blocks of keys and values in every stage, the scratch block not counted.
    num_blocks: int
    #: Whether steps keep to fixed shapes, so that company changes no bit of a result.
    is_exact: bool = False
    has_prefix_cache: bool = True
    #: While anyone decodes, prefill adds at most this many times a decode cycle to a gap.
    gap_factor: float = 1.5

    def __post_init__(self) -> None:
        if not self.is_home and self.num_blocks < self.blocks_per_slot + 1:
            raise ValueError(
                f"{self.num_blocks} blocks of {BLOCK} tokens are too few: a context of "
                f"{self.max_context} needs {self.blocks_per_slot + 1} at least"
            )

    @property
    def blocks_per_slot(self) -> int:
        """Blocks that hold a whole context."""
        return -(-self.max_context // BLOCK)

    @property
    def is_home(self) -> bool:
        """Whether every slot owns blocks for a whole context, so that steps name none."""
        return self.num_blocks >= self.max_rows * self.blocks_per_slot

    @property
    def blocks_per_find(self) -> int:
        """Blocks of a prefix are found in multiples of this; in exact mode in whole chunks."""
        return lcm(BLOCK, self.prefill_chunk) // BLOCK if self.is_exact else 1
