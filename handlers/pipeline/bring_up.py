"""Puts a driver together from a model's YAML: who decides what, and with which numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from handlers.model_config import ModelConfig
from handlers.pipeline.crew import Crew
from handlers.pipeline.driver import Driver, Emit
from handlers.pipeline.generation import Limits
from handlers.pipeline.lanes import LaneModel
from handlers.pipeline.orders import Orders
from handlers.pipeline.place import Place
from handlers.pipeline.planning import Planning
from handlers.pipeline.schedule import Schedule, Shape
from handlers.pipeline.watch import Watch


def make_driver(
    config: ModelConfig,
    place: Place,
    model_dir: Path,
    limits: Limits,
    emit: Emit,
    on_ready: Callable[[], None],
) -> Driver:
    """The driver of a replica; nothing is started yet."""
    planning = Planning(config, model_dir)
    crew = Crew(_orders(config, model_dir, limits), planning.cuts, planning.num_blocks)
    lanes = LaneModel(config.num_stages, config.num_lanes)
    watch = Watch(planning, place.folder, on_ready)

    def make_schedule(num_blocks: int) -> Schedule:
        return Schedule(_shape(config, num_blocks), lanes)

    return Driver(crew, make_schedule, emit, watch)


def _orders(config: ModelConfig, model_dir: Path, limits: Limits) -> Orders:
    kind = "cpu" if config.device_type == "cpu" else _accelerator()
    devices = [kind if kind == "cpu" else f"{kind}:{i}" for i in range(config.num_stages)]
    return Orders(
        model_dir=str(model_dir),
        dtype=config.dtype,
        devices=tuple(devices),
        kernels={
            "kernels": _kernels(config, kind),
            "quantize": config.quantize,
            "compiles": config.compiles,
        },
        num_slots=config.max_batch,
        max_context=config.max_context,
        vocabulary_size=limits.vocabulary_size,
        eos_token_ids=tuple(sorted(limits.eos_token_ids)),
        is_measured=config.partition is None
        and config.partition_by == "measured"
        and config.num_stages > 1,
        startup_timeout_s=config.startup_timeout_s,
        has_standby=config.has_standby,
    )


def _kernels(config: ModelConfig, kind: str) -> str:
    # What `auto` measures may come out otherwise when a stage is started again, and with it the
    # last bits. Packed kernels give a row the same bits at any place and with any threads.
    if config.resume != "exact" or config.kernels != "auto" or kind != "cpu":
        return config.kernels
    can_pack = config.quantize == "none" and config.dtype in ("float32", "bfloat16")
    return "packed" if can_pack else "plain"


def _accelerator() -> str:
    """What this torch was built for; asking a device would take hold of it."""
    version: Any = torch.version
    return "xpu" if getattr(version, "xpu", None) else "cuda"


def _shape(config: ModelConfig, num_blocks: int) -> Shape:
    return Shape(
        num_stages=config.num_stages,
        max_rows=config.max_batch,
        prefill_chunk=config.prefill_chunk,
        max_context=config.max_context,
        num_blocks=num_blocks,
        is_exact=config.resume == "exact",
        has_prefix_cache=config.prefix_cache,
        gap_factor=config.gap_factor,
    )
