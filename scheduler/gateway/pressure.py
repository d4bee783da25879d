"""Back-pressure: new work is refused before the disk or the memory behind the queue is at risk.

Once a second it looks at the free space where the store lives and at what is queued, over all
tenants; in between it counts what was let in, so that a burst cannot slip through between two
looks. What was accepted is not touched: running tasks go on, and what they produce is written, for
which the space that is kept free is there. It does not know tenants; their quotas are in
``scheduler/moves``.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

import structlog

from scheduler.errors import Overloaded, StoreUnavailable

log = structlog.get_logger(__name__)

#: Seconds between two looks.
LOOK_S: Final = 1.0
#: Seconds a refused client is told to wait: a queue gets shorter sooner than a disk gets emptier.
QUEUE_RETRY_S: Final = 5.0
DISK_RETRY_S: Final = 30.0


def free_bytes(folder: Path) -> int:
    """Space that is left where ``folder`` is."""
    return shutil.disk_usage(folder).free


class Pressure:
    """How much room there is for more work."""

    def __init__(
        self,
        depth: Callable[[], Awaitable[Mapping[str, int]]],
        free: Callable[[], int],
        *,
        max_queued: int,
        min_free_disk_bytes: int,
    ) -> None:
        """``depth`` tells the queued tasks by model, ``free`` the bytes left on the disk."""
        self._depth, self._free = depth, free
        self._max_queued, self._min_free_bytes = max_queued, min_free_disk_bytes
        self._num_queued = 0
        self._num_accepted = 0
        self._free_bytes: int | None = None
        self._is_refusing = False

    def __repr__(self) -> str:
        return f"<Pressure queued={self._num_queued} refusing={self._is_refusing}>"

    def check(self, count: int = 1) -> None:
        """Let ``count`` more tasks in, or refuse them.

        Raises:
            Overloaded: says what is short, and when to try again.
        """
        if (refusal := self._refusal(count)) is not None:
            raise refusal
        self._num_accepted += count

    async def run(self) -> None:
        """Look once a second, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """See how things stand; what cannot be read stays as it was seen last."""
        before = self._num_accepted
        try:
            self._free_bytes = self._free()
        except OSError as error:
            log.warning("disk_not_read", error=str(error))
        try:
            self._num_queued = sum((await self._depth()).values())
        except StoreUnavailable as error:
            log.warning("store_refused", error=str(error))
        else:
            # What was let in before the look is counted by it, or was taken on already.
            self._num_accepted -= before
        self._tell()

    def _refusal(self, count: int) -> Overloaded | None:
        if self._free_bytes is not None and self._free_bytes < self._min_free_bytes:
            message = (
                f"the store's disk has {self._free_bytes} bytes left, and {self._min_free_bytes} "
                "are kept for what was accepted; an operator has to make room"
            )
            return Overloaded(message, DISK_RETRY_S)
        num_queued = self._num_queued + self._num_accepted
        if num_queued + count > self._max_queued:
            message = f"{num_queued} tasks are queued, of all tenants together, and"
            return Overloaded(f"{message} {self._max_queued} may be", QUEUE_RETRY_S)
        return None

    def _tell(self) -> None:
        refusal = self._refusal(1)
        if (refusal is not None) is self._is_refusing:
            return
        self._is_refusing = refusal is not None
        if refusal is not None:
            log.warning("submissions_refused", reason=str(refusal))
        else:
            log.info("submissions_accepted_again")
