"""Which of a replica's processes this is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Place:
    """A rank's place in its replica, as torchrun says."""

    #: Position in the whole group, 0 is the one that is given requests.
    rank: int = 0
    #: Position among the ranks of this machine; names the device.
    local_rank: int = 0
    num_ranks: int = 1
    #: The replica's own folder, where its status may be left; None: there is none.
    folder: Path | None = None

    @classmethod
    def from_environment(cls, folder: Path | None = None) -> Place:
        """The place torchrun gave this process; without torchrun it is the only one."""
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
        rank, local_rank, num_ranks = (os.environ.get(name) for name in names)
        return cls(int(rank or 0), int(local_rank or 0), int(num_ranks or 1), folder)
