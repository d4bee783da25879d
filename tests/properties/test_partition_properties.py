"""The planner against trying every cut."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st

from handlers.pipeline.part_costs import Costs, Cut
from handlers.pipeline.partition import TOLERANCE, Device, plan

NUM_BLOCKS = 3
sizes = st.integers(1, 50)


@st.composite
def all_devices(draw: st.DrawFn) -> list[Device]:
    """A few devices of any speed with room for a part of any layers, or without limit."""
    layers = draw(st.lists(sizes, min_size=2, max_size=8))
    costs = Costs.of_weights(layers, draw(st.integers(0, 80)), draw(st.integers(0, 80)))
    parts = tuple(replace(part, kv_bytes=draw(st.integers(0, 5))) for part in costs.layers)
    costs = replace(costs, layers=parts, tied_bytes=draw(st.sampled_from([0, 1])))
    speeds = draw(st.lists(st.floats(0.2, 5), min_size=1, max_size=min(4, len(layers))))
    rooms = st.one_of(st.none(), st.integers(50, 500))
    return [Device(costs.scaled(speed), draw(rooms)) for speed in speeds]


def every_cut(devices: list[Device]) -> list[list[Cut]]:
    num_layers = len(devices[0].costs.layers)
    inner = combinations(range(1, num_layers), len(devices) - 1)
    return [list(pairwise([0, *borders, num_layers])) for borders in inner]


def fits(devices: list[Device], cuts: list[Cut]) -> bool:
    return all(
        device.free_bytes is None
        or device.costs.weight_bytes_of(cut) + NUM_BLOCKS * device.costs.kv_bytes_of(cut)
        <= device.free_bytes
        for device, cut in zip(devices, cuts, strict=True)
    )


def slowest(devices: list[Device], cuts: list[Cut]) -> float:
    return max(device.costs.seconds_of(cut) for device, cut in zip(devices, cuts, strict=True))


@given(all_devices())
def test_no_cut_that_fits_is_faster(devices: list[Device]) -> None:
    possible = [cuts for cuts in every_cut(devices) if fits(devices, cuts)]

    try:
        made = plan(devices, num_blocks=NUM_BLOCKS)
    except ValueError:
        assert possible == []
        return

    assert made.cuts in possible
    assert made.slowest_s <= min(slowest(devices, cuts) for cuts in possible) * (1 + 1e-6)


@given(all_devices())
def test_with_a_tolerance_little_is_lost_and_nothing_overflows(devices: list[Device]) -> None:
    possible = [cuts for cuts in every_cut(devices) if fits(devices, cuts)]
    if not possible:
        return

    made = plan(devices, num_blocks=NUM_BLOCKS, tolerance=TOLERANCE)

    best = min(slowest(devices, cuts) for cuts in possible)
    # Once for devices taken to be alike, once for the even cut; a mean is off by half of it.
    assert made.cuts in possible
    assert made.slowest_s <= best * (1 + TOLERANCE) ** 2 * (1 + 1e-6)


@given(all_devices())
def test_every_layer_is_run_by_exactly_one_stage(devices: list[Device]) -> None:
    unlimited = [replace(device, free_bytes=None) for device in devices]

    cuts = plan(unlimited).cuts

    assert [layer for start, end in cuts for layer in range(start, end)] == list(
        range(len(devices[0].costs.layers))
    )
    assert all(start < end for start, end in cuts)


@given(all_devices(), st.integers(1, 400))
def test_what_a_refusal_says_would_fit_fits(devices: list[Device], room: int) -> None:
    small = [replace(device, free_bytes=room) for device in devices]
    try:
        plan(small, num_blocks=NUM_BLOCKS)
    except ValueError as error:
        more = str(error).split("it would fit with ")[1].split(" more for each stage")[0]
        assert more.endswith(" B"), "sizes this small are told to the byte"
        enough = [replace(device, free_bytes=room + int(more[:-2])) for device in small]

        plan(enough, num_blocks=NUM_BLOCKS)
