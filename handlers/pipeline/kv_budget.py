"""Decides how many blocks of keys and values the stages of a replica hold.

Every stage holds the same blocks of its own layers, so the stage with the least room decides for
all. More than whole contexts for every slot is never needed. Of what is free a share is left: on
a device for what a step takes while it runs, on the machine itself also for everybody else there.
Stages that share a memory share its room.

It is asked when the weights are loaded and knows nothing of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Final

from handlers.pipeline.stage_plan import size
from handlers.pipeline.step import BLOCK

#: How much of what is free keys and values may take, on an accelerator and on the machine.
DEVICE_SHARE: Final = 0.9
HOST_SHARE: Final = 0.5
#: Blocks that a stage holds beside those that sequences are given.
NUM_SPARE: Final = 2


@dataclass(frozen=True, slots=True)
class StageMemory:
    """One stage after its weights were loaded."""

    free_bytes: int
    #: Of all its layers together.
    kv_bytes_per_block: int
    #: Stages with the same name share ``free_bytes``; empty: it is this stage's alone.
    memory: str = ""
    #: Whether it is the machine's memory rather than an accelerator's.
    is_host: bool = False


@dataclass(frozen=True, slots=True)
class Budget:
    """What was decided."""

    num_blocks: int
    #: What set the limit, for people.
    reason: str


@dataclass(frozen=True, slots=True)
class _Room:
    """One limit: blocks that fit, and why not more."""

    num_blocks: float
    reason: str


def budget(
    stages: Sequence[StageMemory],
    *,
    num_slots: int,
    max_context: int,
    kv_memory_bytes: int | None = None,
) -> Budget:
    """How many blocks every stage holds.

    Args:
        kv_memory_bytes: what each stage may take for keys and values; None: by what is free.

    Raises:
        ValueError: not even one context fits, or ``kv_memory_bytes`` is more than there is.
    """
    per_context = -(-max_context // BLOCK)
    enough = _Room(
        num_slots * per_context,
        f"room for {num_slots} whole contexts of {max_context} tokens",
    )
    if kv_memory_bytes is None:
        rooms = [enough, *(_free(name, group) for name, group in _groups(stages).items())]
    else:
        rooms = [enough, *_given(stages, kv_memory_bytes)]
    least = min(rooms, key=lambda room: room.num_blocks)
    if least.num_blocks < per_context:
        needed = " + ".join(
            size((per_context + NUM_SPARE) * stage.kv_bytes_per_block) for stage in stages
        )
        raise ValueError(
            f"keys and values of one context of {max_context} tokens take {per_context} blocks "
            f"({needed} by stage); there are {max(0, int(least.num_blocks))}: {least.reason}; "
            f"lower max_context, or give the stages more memory"
        )
    if kv_memory_bytes is not None:
        _refuse_if_too_much(stages, int(least.num_blocks), kv_memory_bytes)
    return Budget(int(least.num_blocks), least.reason)


def _groups(stages: Sequence[StageMemory]) -> dict[str, list[StageMemory]]:
    """The stages by the memory they share."""
    groups: dict[str, list[StageMemory]] = {}
    for index, stage in enumerate(stages):
        groups.setdefault(stage.memory or f"stage {index}", []).append(stage)
    return groups


def _free(name: str, group: Sequence[StageMemory]) -> _Room:
    share = HOST_SHARE if group[0].is_host else DEVICE_SHARE
    free = min(stage.free_bytes for stage in group)
    reason = f"{share:.0%} of {size(free)} free on {name}"
    return _Room(_fitting(share * free, sum(stage.kv_bytes_per_block for stage in group)), reason)


def _given(stages: Sequence[StageMemory], kv_memory_bytes: int) -> list[_Room]:
    return [
        _Room(
            _fitting(kv_memory_bytes, stage.kv_bytes_per_block),
            f"kv_memory of {size(kv_memory_bytes)} on stage {index}",
        )
        for index, stage in enumerate(stages)
    ]


def _fitting(num_bytes: float, bytes_per_block: int) -> float:
    return num_bytes // bytes_per_block - NUM_SPARE if bytes_per_block else inf


def _refuse_if_too_much(
    stages: Sequence[StageMemory], num_blocks: int, kv_memory_bytes: int
) -> None:
    for name, group in _groups(stages).items():
        taken = (num_blocks + NUM_SPARE) * sum(stage.kv_bytes_per_block for stage in group)
        free = min(stage.free_bytes for stage in group)
        if taken > free:
            raise ValueError(
                f"kv_memory of {size(kv_memory_bytes)} is more than there is: keys and values "
                f"would take {size(taken)} of {size(free)} free on {name}"
            )
