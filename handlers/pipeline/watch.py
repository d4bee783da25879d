"""Keeps account of what the pipeline does: the replica's status, and whether the cut still fits."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from handlers.pipeline.crew import Crew, Done, Ready
from handlers.pipeline.partition import Cut
from handlers.pipeline.schedule import Schedule
from handlers.pipeline.step import Step

logger = logging.getLogger(__name__)

#: The status, in the replica's own folder.
STATUS_FILE: Final = "engine_status.json"
#: Seconds between two looks at what is not urgent.
_TEND_EVERY_S: Final = 1.0


class Watch:
    """One replica's account. All methods are called by the driver's thread."""

    def __init__(self, planning: Any, folder: Path | None, on_ready: Callable[[], None]) -> None:
        """``folder``: where the status is left; None: nowhere."""
        self._planning, self._folder, self._on_ready = planning, folder, on_ready
        self._num_faults = 0
        self._last_fault = ""
        self._tended_at = 0.0

    def issued(self, step: Step, now: float) -> None:
        """A step was sent."""

    def done(self, done: Done, now: float) -> None:
        """A stage has done a step."""

    def ready(self, ready: Ready, crew: Crew, schedule: Schedule) -> None:
        """The stages stand connected."""
        self._write(crew, schedule)
        self._on_ready()

    def broken(self, reason: str, num_in_flight: int) -> None:
        """The epoch is over."""
        self._num_faults += 1
        self._last_fault = reason
        logger.warning("requests_parked num=%d reason=%s", num_in_flight, reason)

    def tend(self, now: float, crew: Crew, schedule: Schedule) -> Sequence[Cut] | None:
        """Now and then: leave the status.

        Returns:
            The layers the stages should have instead, when that would be clearly better.
        """
        if now - self._tended_at < _TEND_EVERY_S:
            return None
        self._tended_at = now
        self._write(crew, schedule)
        return None

    def _write(self, crew: Crew, schedule: Schedule) -> None:
        if self._folder is None:
            return
        status = {
            "epoch": crew.epoch,
            "plan": self._planning.plan.to_document() if self._planning.plan else None,
            "stages": [
                {"rank": member.index, "pid": member.pid, "state": member.state}
                for member in crew.members
            ],
            "num_faults": self._num_faults,
            "last_fault": self._last_fault,
        }
        path = self._folder / STATUS_FILE
        beside = path.with_suffix(f".{os.getpid()}")
        with contextlib.suppress(OSError):
            beside.write_text(json.dumps(status))
            beside.replace(path)
