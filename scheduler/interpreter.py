"""Settles the Python interpreter for a process that runs for long and makes many small records.

The cyclic garbage collector starts after 700 new objects by default and then looks at all young
ones; a control plane makes thousands in a millisecond, hardly any in a cycle, and spent an eighth
of its time on looking. What is there when it has started will be there as long as it runs.
"""

from __future__ import annotations

import gc
from typing import Final

#: New objects until the youngest are looked at, and looks until older ones are.
_THRESHOLDS: Final = (20_000, 20, 50)


def settle() -> None:
    """To be called once everything is loaded."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
