"""How many blocks of keys and values the stages hold."""

from __future__ import annotations

import pytest

from handlers.pipeline.kv_budget import NUM_SPARE, Budget, StageMemory, budget

MIB = 1024**2
GIB = 1024**3


def device(free_bytes: int, kv_bytes_per_block: int = MIB) -> StageMemory:
    return StageMemory(free_bytes, kv_bytes_per_block)


def host(free_bytes: int, kv_bytes_per_block: int = MIB) -> StageMemory:
    return StageMemory(free_bytes, kv_bytes_per_block, "host", is_host=True)


def decide(*stages: StageMemory, kv_memory_bytes: int | None = None) -> Budget:
    """For four slots of 10 blocks each."""
    return budget(stages, num_slots=4, max_context=640, kv_memory_bytes=kv_memory_bytes)


def test_no_more_is_taken_than_every_slot_can_use() -> None:
    decided = decide(device(100 * GIB), device(100 * GIB))

    assert decided == Budget(40, "room for 4 whole contexts of 640 tokens")


def test_a_context_that_ends_within_a_block_has_that_block() -> None:
    assert budget([device(GIB)], num_slots=3, max_context=65).num_blocks == 6


def test_a_device_gives_nine_tenths_of_what_is_free() -> None:
    decided = decide(device(20 * MIB))

    assert decided.num_blocks == 18 - NUM_SPARE
    assert decided.reason == "90% of 20.0 MiB free on stage 0"


def test_the_stage_with_the_least_room_decides_for_all() -> None:
    decided = decide(device(100 * MIB, MIB), device(100 * MIB, 5 * MIB))

    assert decided.num_blocks == 18 - NUM_SPARE
    assert "stage 1" in decided.reason


def test_the_machine_gives_half_of_what_is_free_to_all_its_stages_together() -> None:
    decided = decide(host(100 * MIB, 2 * MIB), host(100 * MIB, MIB))

    assert decided.num_blocks == 16 - NUM_SPARE
    assert "50% of 100.0 MiB free on host" in decided.reason


def test_a_given_size_is_of_each_stage() -> None:
    decided = decide(host(GIB, 2 * MIB), host(GIB, MIB), kv_memory_bytes=40 * MIB)

    assert decided.num_blocks == 20 - NUM_SPARE
    assert decided.reason == "kv_memory of 40.0 MiB on stage 0"


def test_of_a_given_size_no_more_is_taken_than_every_slot_can_use() -> None:
    assert decide(host(GIB), kv_memory_bytes=64 * GIB).num_blocks == 40


def test_a_given_size_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"would take 40\.0 MiB of 30\.0 MiB free on host"):
        decide(host(30 * MIB), host(30 * MIB), kv_memory_bytes=20 * MIB)


def test_less_than_one_context_is_refused_with_the_numbers() -> None:
    with pytest.raises(ValueError, match=r"take 10 blocks .*; there are 7: 90% of 10\.0 MiB"):
        decide(device(10 * MIB))


def test_no_room_at_all_is_refused_too() -> None:
    with pytest.raises(ValueError, match="there are 0"):
        decide(device(0))


def test_a_stage_that_keeps_nothing_sets_no_limit() -> None:
    assert decide(device(0, 0), device(GIB)).num_blocks == 40
