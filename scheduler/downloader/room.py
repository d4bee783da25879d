"""Decides whether there is room for a model, and what goes to make it.

Two limits count: what the file system has free less what is to stay free, and the size that the
cache may have. Models that nobody uses go, the one that was used longest ago first, until there is
room; what another download still has to write counts as taken. Pure: numbers in, names out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from scheduler.downloader.cache import Kept


@dataclass(frozen=True, slots=True)
class Room:
    """How full the cache is, in bytes."""

    free: int
    #: To stay free.
    reserve: int
    held: int
    #: What the cache may hold; 0: as much as the file system.
    limit: int
    #: What other downloads still have to write.
    promised: int = 0

    def shortage(self, needed: int) -> int:
        """Bytes that have to go before so many more can come; 0: none."""
        on_disk = needed + self.promised + self.reserve - self.free
        in_cache = needed + self.promised + self.held - self.limit if self.limit else 0
        return max(0, on_disk, in_cache)


def to_evict(models: Sequence[Kept], shortage: int, keep: Collection[str] = ()) -> list[str]:
    """Names of models that go; they may free less than was asked, when that is all there is.

    A blob is freed with the last model that holds it.
    """
    holders = Counter(blob for model in models for blob in model.blobs)
    going: list[str] = []
    freed = 0
    for model in sorted(models, key=lambda model: (model.used_at, model.name)):
        if freed >= shortage:
            break
        if model.is_in_use or model.name in keep:
            continue
        going.append(model.name)
        for blob, size in model.blobs.items():
            holders[blob] -= 1
            if not holders[blob]:
                freed += size
    return going
