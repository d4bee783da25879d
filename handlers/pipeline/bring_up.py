"""Puts a driver together from a model's YAML: who decides what, and with which numbers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from handlers.model_config import ModelConfig
from handlers.pipeline import kv_budget, partition, surgery
from handlers.pipeline.channel import Message
from handlers.pipeline.crew import Crew, Orders
from handlers.pipeline.driver import Driver, Emit
from handlers.pipeline.family_check import check
from handlers.pipeline.generation import Limits
from handlers.pipeline.lanes import LaneModel
from handlers.pipeline.part_costs import Costs, Profile
from handlers.pipeline.partition import TOLERANCE, Cut, Device, Plan
from handlers.pipeline.place import Place
from handlers.pipeline.schedule import Schedule, Shape
from handlers.pipeline.watch import Watch

logger = logging.getLogger(__name__)


def make_driver(
    config: ModelConfig,
    place: Place,
    model_dir: Path,
    limits: Limits,
    emit: Emit,
    on_ready: Callable[[], None],
) -> Driver:
    """The driver of a replica; nothing is started yet."""
    planning = _Planning(config, model_dir)
    crew = Crew(_orders(config, model_dir, limits), planning.cuts, planning.num_blocks)
    lanes = LaneModel(config.num_stages, config.num_lanes)
    watch = Watch(planning, place.folder, on_ready)

    def make_schedule(num_blocks: int) -> Schedule:
        return Schedule(_shape(config, num_blocks), lanes)

    return Driver(crew, make_schedule, emit, watch)


class _Planning:
    """Decides the stages' layers and blocks for one model."""

    def __init__(self, config: ModelConfig, model_dir: Path) -> None:
        self._config, self._model_dir = config, model_dir
        #: The plan that the stages follow, once there is one.
        self.plan: Plan | None = None

    def cuts(self, profiles: Sequence[Message | None]) -> list[Cut]:
        """The layers of each stage.

        Raises:
            ValueError: there is no way to cut the model so, or not into so many stages.
        """
        config = self._config
        measured = [Profile.from_document(profile) for profile in profiles if profile is not None]
        rows = -(-config.max_batch // config.num_stages)
        if measured:
            devices = [Device(p.costs(rows), p.free_bytes, p.memory) for p in measured]
        else:
            text = surgery.text_config(self._model_dir)
            itemsize = getattr(torch, config.dtype).itemsize
            devices = [Device(Costs.estimate(text, itemsize))] * config.num_stages
        self.plan = partition.plan(
            devices,
            explicit=config.partition,
            rows=rows,
            tolerance=TOLERANCE if measured else 0.0,
        )
        check(self._model_dir, self.plan.cuts, config.max_context)
        logger.info("stage_plan_made model=%s\n%s", config.name, self.plan.describe())
        return self.plan.cuts

    def num_blocks(self, loaded: Sequence[Message]) -> int:
        """How many blocks every stage holds, from what each has free.

        Raises:
            ValueError: there is no room for one context.
        """
        raise NotImplementedError


def _orders(config: ModelConfig, model_dir: Path, limits: Limits) -> Orders:
    kind = "cpu" if config.device_type == "cpu" else _accelerator()
    devices = [kind if kind == "cpu" else f"{kind}:{i}" for i in range(config.num_stages)]
    return Orders(
        model_dir=str(model_dir),
        dtype=config.dtype,
        devices=tuple(devices),
        kernels={
            "kernels": config.kernels,
            "quantize": config.quantize,
            "compiles": config.compiles,
        },
        num_slots=config.max_batch,
        max_context=config.max_context,
        vocabulary_size=limits.vocabulary_size,
        is_measured=config.partition is None
        and config.partition_by == "measured"
        and config.num_stages > 1,
        startup_timeout_s=config.startup_timeout_s,
    )


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
