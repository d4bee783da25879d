"""What a model's YAML says about scaling it: the section ``plait.scale``.

With the section the number of replicas follows the work, between two bounds; without it the number
is fixed. What may stand there, and why, is said in ``model_schema``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Scale:
    """How the number of a model's replicas follows its work."""

    #: Most and least replicas; with a least of 0 none run while there is nothing to do.
    max: int
    min: int = 1
    #: Seconds that work should wait at most until a replica takes it.
    target_wait_s: float = 5.0
    #: Seconds from acceptance to the first chunk, aimed at instead; None: ``target_wait_s`` counts.
    target_ttft_s: float | None = None
    #: Part of what replicas were measured to do that the work that comes may take.
    use_ratio: float = 0.75
    #: Part by which the need must differ from what runs before anything changes.
    band_ratio: float = 0.1
    #: Seconds for which more, or fewer, must have been needed all the time.
    up_window_s: float = 10.0
    down_window_s: float = 300.0
    #: Seconds between two steps down.
    cooldown_s: float = 120.0
    #: Seconds without any work until none run, with a least of 0.
    idle_s: float = 300.0
    #: Seconds that running work has to finish on a replica that goes, before it is parked.
    drain_s: float = 600.0

    def clamped(self, num_replicas: int) -> int:
        """The nearest number within the bounds."""
        return max(self.min, min(num_replicas, self.max))


def read(given: Mapping[str, Any] | None) -> Scale | None:
    """The section as a record, from values that passed the schema; None: there is none."""
    return None if given is None else Scale(**given)
