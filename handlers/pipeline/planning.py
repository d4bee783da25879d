"""Plans one model's stages from what they say of themselves: layers, then blocks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from handlers.model_config import ModelConfig
from handlers.pipeline import family_check, kv_budget, partition, profile
from handlers.pipeline.channel import Message
from handlers.pipeline.drift import Drift
from handlers.pipeline.kv_budget import StageMemory
from handlers.pipeline.part_costs import Profile
from handlers.pipeline.partition import TOLERANCE, Cut, Device, Plan
from handlers.pipeline.step import BLOCK

logger = logging.getLogger(__name__)

#: Looks, one a second, that a new cut is left alone: it must show what it is worth.
_COOL_DOWN = 60


class Planning:
    """The plan of a replica's stages, and how it came about."""

    def __init__(self, config: ModelConfig, model_dir: Path) -> None:
        self._config, self._model_dir = config, model_dir
        self._profiles: list[Profile] = []
        #: What the stages follow; None until they have said what they need to say.
        self.plan: Plan | None = None

    def __repr__(self) -> str:
        return f"<Planning layers={self.plan.counts if self.plan else None}>"

    def cuts(self, profiles: Sequence[Message | None]) -> list[Cut]:
        """The layers of each stage.

        ``profiles``: JSON values of what each stage measured, None where none was asked for.

        Raises:
            ValueError: there is no way to cut the model so, or not into so many stages.
        """
        config = self._config
        self._profiles = [Profile.from_document(each) for each in profiles if each is not None]
        # As many rows as a step has when every slot is taken.
        rows = -(-config.max_batch // (config.num_lanes or config.num_stages))
        self.plan = partition.plan(
            self._devices(rows),
            explicit=config.partition,
            rows=rows,
            num_lanes=config.num_lanes,
            num_blocks=-(-config.max_context // BLOCK),
            tolerance=TOLERANCE if self._profiles else 0.0,
        )
        family_check.check(self._model_dir, self.plan.cuts, config.max_context)
        logger.info("stage_plan_made model=%s\n%s", config.name, self.plan.describe())
        return self.plan.cuts

    def drift(self) -> Drift | None:
        """What watches whether the plan still fits; None: it was not measured, or is fixed."""
        if self.plan is None or not self._profiles or not self._config.repartitions:
            return None
        return Drift(self._devices, self.plan, cool_down=_COOL_DOWN)

    def follow(self, plan: Plan) -> list[Cut]:
        """From now on the stages follow another plan."""
        self.plan = plan
        logger.info("stages_recut model=%s\n%s", self._config.name, plan.describe())
        return plan.cuts

    def num_blocks(self, loaded: Sequence[Message]) -> int:
        """How many blocks every stage holds, from what each said when it had loaded.

        Raises:
            ValueError: there is no room for one context.
        """
        config = self._config
        is_host = config.device_type == "cpu"
        found = kv_budget.budget(
            [
                StageMemory(each["free_bytes"], each["kv_bytes"], each["memory"], is_host)
                for each in loaded
            ],
            num_slots=config.max_batch,
            max_context=config.max_context,
            kv_memory_bytes=config.kv_memory_bytes,
        )
        logger.info("kv_budget_made blocks=%d reason=%s", found.num_blocks, found.reason)
        return found.num_blocks

    def _devices(self, rows: int) -> list[Device]:
        if self._profiles:
            return [Device(p.costs(rows), p.free_bytes, p.memory) for p in self._profiles]
        costs = profile.count(self._model_dir, getattr(torch, self._config.dtype))
        return [Device(costs)] * self._config.num_stages
