"""Which layers each stage gets."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from handlers.pipeline.part_costs import Costs, Cut
from handlers.pipeline.partition import TOLERANCE, Device, Plan, plan

MIB = 1024**2


def costs(num_layers: int = 8, layer: int = 100, embedding: int = 0, head: int = 0) -> Costs:
    return Costs.of_weights((layer,) * num_layers, embedding, head)


def with_kv(given: Costs, kv_bytes: int) -> Costs:
    return replace(given, layers=tuple(replace(part, kv_bytes=kv_bytes) for part in given.layers))


def cuts(given: Costs, num_stages: int, explicit: list[int] | None = None) -> list[Cut]:
    return plan([Device(given)] * num_stages, explicit=explicit).cuts


def of_speeds(given: Costs, speeds: list[float], tolerance: float = 0.0) -> Plan:
    return plan([Device(given.scaled(1 / speed)) for speed in speeds], tolerance=tolerance)


def test_equal_layers_are_shared_equally() -> None:
    assert cuts(costs(8), 4) == [(0, 2), (2, 4), (4, 6), (6, 8)]


def test_one_stage_gets_everything() -> None:
    assert cuts(costs(5, head=1000), 1) == [(0, 5)]


def test_the_head_takes_layers_away_from_the_last_stage() -> None:
    assert cuts(costs(12, head=600), 2) == [(0, 9), (9, 12)]


def test_the_last_stage_keeps_one_layer_beside_a_huge_head() -> None:
    assert cuts(costs(6, head=100_000), 2)[-1][1] == 6
    assert all(end > start for start, end in cuts(costs(6, head=100_000), 3))


def test_the_embedding_decides_between_cuts_of_equal_time() -> None:
    without = cuts(costs(5, embedding=0), 2)
    with_embedding = cuts(costs(5, embedding=300), 2)

    assert max(end - start for start, end in without) == 3
    assert with_embedding == [(0, 2), (2, 5)]


def test_the_embedding_never_makes_a_slower_cut() -> None:
    assert cuts(costs(8, embedding=100_000), 2) == [(0, 4), (4, 8)]


def test_uneven_layers_are_cut_by_weight() -> None:
    assert cuts(Costs.of_weights((300, 100, 100, 100), 0, 0), 2) == [(0, 1), (1, 4)]


def test_stages_that_do_not_set_the_pace_are_even_too() -> None:
    assert plan([Device(costs(7))] * 3).counts in ([3, 2, 2], [2, 3, 2], [2, 2, 3])


def test_an_explicit_partition_is_taken_as_it_is() -> None:
    assert cuts(costs(8, head=10_000), 2, [6, 2]) == [(0, 6), (6, 8)]


@pytest.mark.parametrize("counts", [[4, 3], [8], [4, 2, 2], [8, 0], [9, -1]])
def test_an_explicit_partition_that_does_not_fit_is_refused(counts: list[int]) -> None:
    with pytest.raises(ValueError, match="2 stages of at least one layer each, 8 layers in all"):
        cuts(costs(8), 2, counts)


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="allowed are 1 to 4"):
        cuts(costs(4), 5)


@pytest.mark.parametrize(
    ("speeds", "counts"),
    [([2, 1], [8, 4]), ([1, 2], [4, 8]), ([1, 1, 2], [3, 3, 6]), ([5, 1], [10, 2])],
)
def test_a_faster_device_gets_more_layers(speeds: list[float], counts: list[int]) -> None:
    assert of_speeds(costs(12), speeds, TOLERANCE).counts == counts


def test_each_stage_is_judged_by_its_own_device_s_costs() -> None:
    # The second device is slow at layers alone, and the head is as dear as three layers.
    slow = replace(costs(12, head=300).scaled(2), head=costs(1, head=300).head)

    made = plan([Device(costs(12, head=300)), Device(slow)])

    assert made.counts == [9, 3]
    assert made.seconds == pytest.approx((900 / 10e9, 900 / 10e9))


@pytest.mark.parametrize("speeds", [[1, 1.1], [1.1, 1], [0.95, 1.05]])
def test_devices_that_differ_by_noise_are_cut_evenly(speeds: list[float]) -> None:
    assert of_speeds(costs(80), speeds, TOLERANCE).counts == [40, 40]


def test_the_even_cut_is_kept_while_another_gains_little() -> None:
    assert of_speeds(costs(12, head=100), [1, 1], TOLERANCE).counts == [6, 6]
    assert of_speeds(costs(12, head=400), [1, 1], TOLERANCE).counts == [8, 4]


def test_the_predicted_bubble_is_what_the_slowest_stage_leaves_the_others() -> None:
    made = plan([Device(costs(4))] * 2, explicit=[3, 1], num_lanes=2)

    assert made.idle_share == pytest.approx(1 - (3 + 1) / (2 * 3))
    assert made.slowest_s == pytest.approx(made.cycle_s / 2)


def test_a_small_device_gets_what_it_has_room_for() -> None:
    given = costs(8, layer=10 * MIB)

    made = plan([Device(given, 25 * MIB), Device(given, 100 * MIB)])

    assert made.counts == [2, 6]


def test_keys_and_values_count_as_memory() -> None:
    given = with_kv(costs(8, layer=10 * MIB), MIB)
    devices = [Device(given, 40 * MIB), Device(given, 200 * MIB)]

    assert plan(devices, num_blocks=0).counts == [4, 4]
    assert plan(devices, num_blocks=10).counts == [2, 6]


def test_stages_that_share_a_memory_must_fit_it_together() -> None:
    given = costs(8, layer=10 * MIB)
    devices = [Device(given, 70 * MIB, "host")] * 2

    with pytest.raises(ValueError, match=r"weights take 80\.0 MiB.* 5\.0 MiB more for each stage"):
        plan(devices)


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    given = with_kv(costs(8, layer=10 * MIB), MIB)
    devices = [Device(given, 60 * MIB)] * 2

    with pytest.raises(ValueError, match=r"for 50 blocks; .* or at most 5 blocks"):
        plan(devices, num_blocks=50)
    assert plan(devices, num_blocks=5).counts == [4, 4]


def test_an_explicit_partition_too_large_for_its_devices_is_refused() -> None:
    given = costs(8, layer=10 * MIB)

    with pytest.raises(ValueError, match=r"stage 0 would hold 70\.0 MiB of 60\.0 MiB free"):
        plan([Device(given, 60 * MIB)] * 2, explicit=[7, 1])


def test_a_tied_head_is_held_once_by_the_stage_that_has_both() -> None:
    given = replace(costs(4, layer=10, embedding=500, head=500), tied_bytes=500)

    assert plan([Device(given)]).stages[0].weight_bytes == 540
    assert [s.weight_bytes for s in plan([Device(given)] * 2, explicit=[2, 2]).stages] == [520] * 2


def test_the_plan_tells_people_layers_times_memory_and_bubble() -> None:
    given = with_kv(costs(8, layer=10 * MIB), 2 * MIB)

    lines = plan([Device(given, 512 * MIB)] * 2, explicit=[6, 2], num_lanes=2).describe()

    assert "8 layers in 2 stages, cut given; estimated at 1 rows" in lines
    assert "bubble 33%" in lines
    assert "layers 0 to 5 (6), 6.29 ms a step, 60.0 MiB weights, 12.0 MiB a block" in lines
    assert "512.0 MiB free" in lines


def test_an_estimate_counts_the_head_by_the_vocabulary() -> None:
    config = SimpleNamespace(
        hidden_size=10, intermediate_size=20, num_attention_heads=2, num_hidden_layers=3,
        vocab_size=1000,
    )  # fmt: skip

    estimate = Costs.estimate(config, bytes_per_weight=4)

    assert [part.weight_bytes for part in estimate.layers] == [4 * (2 * 10 * 5 * 4 + 600)] * 3
    assert [part.kv_bytes for part in estimate.layers] == [2 * 2 * 5 * 64 * 4] * 3
    assert estimate.head.weight_bytes == estimate.embedding.weight_bytes == 40_000
