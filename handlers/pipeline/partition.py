"""Decides which decoder layers each stage runs.

A pipeline is as fast as its slowest stage, so the cut makes the slowest stage as fast as can be,
each stage by the costs of its own device: a device twice as slow gets about half the layers.
Among the cuts of equal time the one with the smallest largest share of memory wins, then the one
that is most even. What a stage holds never exceeds what its device has free.

Measured times are noisy. Devices that differ by no more than ``tolerance`` are taken to be alike,
and the cut into equal numbers of layers is kept unless another is faster by more than that: a
measurement that is a little off must not make an odd cut.

An explicit list of layer counts is taken as it is, if it adds up and fits.

    python -m handlers.pipeline.partition MODEL_FOLDER --stages 2 --measure
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from math import inf
from typing import Final

from handlers.pipeline import balance
from handlers.pipeline.balance import CostOf
from handlers.pipeline.part_costs import Costs, Cut, Part
from handlers.pipeline.stage_plan import Plan, StagePlan, size

__all__ = ["TOLERANCE", "Costs", "Cut", "Device", "Plan", "plan"]

#: How far apart measurements of the same thing may lie on a machine that others use too.
TOLERANCE: Final = 0.12


@dataclass(frozen=True, slots=True)
class Device:
    """What one stage runs on."""

    #: Of the whole decoder's parts, as they are on this device.
    costs: Costs
    #: Bytes its stage may take; None: not known, no limit.
    free_bytes: int | None = None
    #: Devices with the same name share ``free_bytes``; empty: this one has its own.
    memory: str = ""


def plan(
    devices: Sequence[Device],
    *,
    explicit: Sequence[int] | None = None,
    rows: int = 1,
    num_lanes: int | None = None,
    num_blocks: int = 0,
    latency_s: float = 0.0,
    tolerance: float = 0.0,
) -> Plan:
    """The layers of each stage, in order.

    Args:
        devices: one for each stage.
        explicit: decoder layers of each stage, if they are not to be chosen.
        rows: of the steps that the devices' costs are for.
        num_lanes: steps in flight for the predicted bubble; None: as many as stages.
        num_blocks: of keys and values that every stage must have room for.
        latency_s: of all links of a round.
        tolerance: relative difference of times that means nothing: ``TOLERANCE`` for what was
            measured, 0 for estimates.

    Raises:
        ValueError: there are more stages than layers, ``explicit`` does not add up, or nothing
            fits the memory.
    """
    num_layers = len(devices[0].costs.layers)
    if explicit is not None:
        cuts = _explicit(explicit, len(devices), num_layers)
        _refuse_if_too_large(devices, cuts, num_blocks)
    elif not 1 <= len(devices) <= num_layers:
        raise ValueError(
            f"{num_layers} decoder layers cannot make {len(devices)} stages; "
            f"allowed are 1 to {num_layers}"
        )
    else:
        cuts = _choose(_level(devices, tolerance), num_blocks, tolerance)
    return Plan(
        tuple(_stage(device, cut) for device, cut in zip(devices, cuts, strict=True)),
        rows,
        num_lanes or len(devices),
        num_blocks,
        latency_s,
        is_measured=devices[0].costs.is_measured,
        is_explicit=explicit is not None,
    )


def _stage(device: Device, cut: Cut) -> StagePlan:
    costs = device.costs
    return StagePlan(
        cut,
        costs.seconds_of(cut),
        costs.weight_bytes_of(cut),
        costs.kv_bytes_of(cut),
        device.free_bytes,
    )


def _explicit(counts: Sequence[int], num_stages: int, num_layers: int) -> list[Cut]:
    if len(counts) != num_stages or sum(counts) != num_layers or min(counts) < 1:
        raise ValueError(
            f"partition {list(counts)} does not fit: it must name {num_stages} stages of at "
            f"least one layer each, {num_layers} layers in all"
        )
    return list(pairwise([0, *accumulate(counts)]))


def _level(devices: Sequence[Device], tolerance: float) -> list[Device]:
    """Give devices that are about equally fast the same costs."""
    order = sorted(range(len(devices)), key=lambda index: devices[index].costs.seconds)
    groups: list[list[int]] = []
    for index in order:
        fastest = devices[groups[-1][0]].costs.seconds if groups else 0.0
        if groups and devices[index].costs.seconds <= fastest * (1 + tolerance):
            groups[-1].append(index)
        else:
            groups.append([index])
    levelled = list(devices)
    for group in groups:
        costs = _mean([devices[index].costs for index in group])
        for index in group:
            levelled[index] = replace(devices[index], costs=costs)
    return levelled


def _mean(all_costs: Sequence[Costs]) -> Costs:
    def mean(parts: Sequence[Part]) -> Part:
        return replace(parts[0], seconds=sum(part.seconds for part in parts) / len(parts))

    return replace(
        all_costs[0],
        layers=tuple(map(mean, zip(*(costs.layers for costs in all_costs), strict=True))),
        embedding=mean([costs.embedding for costs in all_costs]),
        head=mean([costs.head for costs in all_costs]),
        fixed_s=sum(costs.fixed_s for costs in all_costs) / len(all_costs),
    )


def _choose(devices: Sequence[Device], num_blocks: int, tolerance: float) -> list[Cut]:
    time, memory = _tables(devices, num_blocks)
    num_layers, num_stages = len(devices[0].costs.layers), len(devices)

    def within(limits: Sequence[float]) -> list[Cut] | None:
        return balance.cut(num_layers, num_stages, time, memory, limits, tolerance)

    cuts = within([inf if each.free_bytes is None else each.free_bytes for each in devices])
    if cuts is not None and _overfull(devices, cuts, num_blocks):
        # Each stage stays within the memory it shares with others, but not all of them together.
        cuts = within([_share(device, devices) for device in devices])
    if cuts is None:
        raise ValueError(_too_large(devices, num_blocks))
    return cuts


def _tables(devices: Sequence[Device], num_blocks: int) -> tuple[CostOf, CostOf]:
    """Seconds and bytes of any stage with any layers, from running sums."""
    seconds = [[0.0, *accumulate(part.seconds for part in each.costs.layers)] for each in devices]
    held = [
        [0, *accumulate(p.weight_bytes + num_blocks * p.kv_bytes for p in each.costs.layers)]
        for each in devices
    ]

    def time(stage: int, start: int, end: int) -> float:
        beside = devices[stage].costs.seconds_beside((start, end))
        return seconds[stage][end] - seconds[stage][start] + beside

    def memory(stage: int, start: int, end: int) -> float:
        beside = devices[stage].costs.bytes_beside((start, end))
        return held[stage][end] - held[stage][start] + beside

    return time, memory


def _share(device: Device, devices: Sequence[Device]) -> float:
    if device.free_bytes is None:
        return inf
    num_sharing = sum(each.memory == device.memory for each in devices) if device.memory else 1
    return device.free_bytes / num_sharing


def _overfull(devices: Sequence[Device], cuts: Sequence[Cut], num_blocks: int) -> str:
    """What holds more than is free, in words; empty when all is well."""
    taken: dict[str, float] = {}
    free: dict[str, float] = {}
    for index, (device, cut) in enumerate(zip(devices, cuts, strict=True)):
        if device.free_bytes is not None:
            name = device.memory or f"stage {index}"
            taken[name] = taken.get(name, 0.0) + _bytes(device.costs, cut, num_blocks)
            free[name] = min(free.get(name, inf), device.free_bytes)
    return "; ".join(
        f"{name} would hold {size(taken[name])} of {size(free[name])} free"
        for name in taken
        if taken[name] > free[name]
    )


def _bytes(costs: Costs, cut: Cut, num_blocks: int) -> int:
    return costs.weight_bytes_of(cut) + num_blocks * costs.kv_bytes_of(cut)


def _refuse_if_too_large(devices: Sequence[Device], cuts: Sequence[Cut], num_blocks: int) -> None:
    if overfull := _overfull(devices, cuts, num_blocks):
        counts = [end - start for start, end in cuts]
        raise ValueError(f"partition {counts} does not fit the memory: {overfull}")


def _too_large(devices: Sequence[Device], num_blocks: int) -> str:
    """Why no cut fits, and what would."""
    costs = devices[0].costs
    whole = (0, len(costs.layers))
    free = ", ".join(
        "no limit" if device.free_bytes is None else size(device.free_bytes) for device in devices
    )
    return (
        f"{len(costs.layers)} layers in {len(devices)} stages do not fit the memory: weights take "
        f"{size(costs.weight_bytes_of(whole))}, keys and values "
        f"{size(num_blocks * costs.kv_bytes_of(whole))} for {num_blocks} blocks; the stages may "
        f"take {free}; it would fit with {_remedy(devices, num_blocks)}"
    )


def _remedy(devices: Sequence[Device], num_blocks: int) -> str:
    """The least that would help: fewer blocks, or so many more bytes on every stage."""
    fitting = bisect_right(range(num_blocks), 0, key=lambda blocks: _excess(devices, blocks) > 0)
    more = f"{size(_excess(devices, num_blocks))} more for each stage"
    return f"{more}, or at most {fitting - 1} blocks" if fitting else more


def _excess(devices: Sequence[Device], num_blocks: int) -> float:
    """Bytes by which the fullest stage exceeds its share, in the cut where that is least."""
    _, memory = _tables(devices, num_blocks)
    shares = [_share(device, devices) for device in devices]
    return balance.least_excess(len(devices[0].costs.layers), len(devices), memory, shares)


if __name__ == "__main__":
    from handlers.pipeline.plan_command import main

    main()
