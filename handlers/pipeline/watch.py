"""Keeps account of what the pipeline does: the status it shows, and whether the cut still fits."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from handlers.pipeline.crew import Crew
from handlers.pipeline.drift import Drift
from handlers.pipeline.meter import Measured, Meter
from handlers.pipeline.orders import Done
from handlers.pipeline.partition import Cut, Plan
from handlers.pipeline.planning import Planning
from handlers.pipeline.schedule import Schedule
from handlers.pipeline.step import Step

logger = logging.getLogger(__name__)

#: The status, in the replica's own folder.
STATUS_FILE: Final = "engine_status.json"
#: Seconds between two looks at what is not urgent.
_TEND_EVERY_S: Final = 1.0
#: An interval with less work than this says nothing about a bubble.
_LEAST_WORK_S: Final = 0.5


class Watch:
    """One replica's account. All methods are called by the driver's thread."""

    def __init__(
        self, planning: Planning, folder: Path | None, on_ready: Callable[[], None]
    ) -> None:
        """``folder``: where the status is left; None: nowhere."""
        self._planning, self._folder, self._on_ready = planning, folder, on_ready
        self._meter: Meter | None = None
        self._drift: Drift | None = None
        self._measured: Measured | None = None
        self._num_faults = 0
        self._last_fault = ""
        self._tended_at = 0.0
        #: Whether steps were done since the status was written.
        self._has_news = False

    def issued(self, step: Step, now: float) -> None:
        """A step was sent."""
        if self._meter is not None:
            num_rows = sum(row.num_tokens > 0 for row in step.rows)
            self._meter.issued(step.number, num_rows, step.width, now)

    def done(self, done: Done, now: float) -> None:
        """A stage has done a step."""
        self._has_news = True
        if self._meter is not None:
            self._meter.done(done.number, done.stage, done.seconds, now)

    def ready(self, crew: Crew, schedule: Schedule) -> None:
        """The stages stand connected, with empty caches."""
        self._meter = Meter(len(crew.members))
        self._drift = self._drift or self._planning.drift()
        self._write(crew, schedule)
        self._on_ready()

    def broken(self, reason: str, num_in_flight: int) -> None:
        """The epoch is over."""
        self._num_faults += 1
        self._last_fault = reason
        logger.warning("requests_parked num=%d reason=%s", num_in_flight, reason)

    def tend(self, now: float, crew: Crew, schedule: Schedule) -> Sequence[Cut] | None:
        """Now and then: measure, and leave the status.

        Returns:
            The layers the stages should have instead, when that would be clearly better.
        """
        if now - self._tended_at < _TEND_EVERY_S or self._meter is None:
            return None
        self._tended_at = now
        says_something = self._meter.measured().work_s >= _LEAST_WORK_S
        if says_something:
            self._measured = self._meter.take()
        if self._has_news:
            self._write(crew, schedule)
        if not says_something:
            return None
        plan = self._drift.look(self._meter.stage_times()) if self._drift is not None else None
        return None if plan is None else self._planning.follow(plan)

    def _write(self, crew: Crew, schedule: Schedule) -> None:
        """Leave the status; whoever reads it never sees half of it."""
        self._has_news = False
        if self._folder is None or self._planning.plan is None:
            return
        path = self._folder / STATUS_FILE
        beside = path.with_name(f".{STATUS_FILE}.{os.getpid()}")
        try:
            beside.write_text(json.dumps(self._status(crew, schedule, self._planning.plan)))
            beside.replace(path)
        except OSError as error:
            logger.warning("status_not_written path=%s reason=%s", path, error)
            self._folder = None

    def _status(self, crew: Crew, schedule: Schedule, plan: Plan) -> dict[str, Any]:
        measured, times = self._measured, None
        if self._meter is not None:
            times = self._meter.stage_times()
        counts = asdict(schedule.counts())
        used, cached = counts["num_blocks_used"], counts["num_blocks_cached"]
        return {
            "epoch": crew.epoch,
            "plan": {
                "cuts": plan.cuts,
                "rows": plan.rows,
                "predicted_s": plan.seconds if plan.is_measured else None,
                "predicted_bubble": plan.idle_share,
                "measured_rows": times.rows if times else None,
                "measured_s": times.seconds if times else None,
                "measured_bubble": measured.idle_share if measured else None,
            },
            "stages": [
                {"rank": member.index, "pid": member.pid, "state": member.state}
                for member in crew.members
            ],
            "num_faults": self._num_faults,
            "last_fault": self._last_fault,
            "kv": {"num_blocks": crew.num_blocks, "used": used, "cached": cached},
            "lanes": counts["num_lanes"],
            "schedule": counts,
        }
