"""Which block holds the keys and values of which tokens.

A full block is known by its *key*: a digest of its tokens and the key of the block before it, so
of everything its keys and values depend on. Equal keys mean equal contents; two blocks may hold
the same. The digest is one that nobody finds collisions of, because a collision would answer one
client with another's prompt (as in vLLM's automatic prefix caching, which hashes likewise).

It knows neither slots nor who uses a block.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Items
from hashlib import blake2b

from handlers.pipeline.step import BLOCK

Key = bytes


def extend(keys: list[Key], token_ids: Items[int], num_tokens: int) -> None:
    """Append the keys of the full blocks among the first ``num_tokens`` tokens that lack one."""
    while (len(keys) + 1) * BLOCK <= num_tokens:
        start = len(keys) * BLOCK
        tokens = array("q", token_ids[start : start + BLOCK]).tobytes()
        keys.append(blake2b((keys[-1] if keys else b"") + tokens, digest_size=32).digest())


class Contents:
    """The blocks whose contents are known."""

    def __init__(self) -> None:
        self._keys: dict[int, Key] = {}
        self._holders: dict[Key, dict[int, None]] = {}

    def __repr__(self) -> str:
        return f"<Contents blocks={len(self._keys)}>"

    def __contains__(self, block: int) -> bool:
        return block in self._keys

    def __iter__(self) -> Iterator[int]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def key_of(self, block: int) -> Key | None:
        """What the block holds; None: not known."""
        return self._keys.get(block)

    def holder(self, key: Key) -> int | None:
        """A block with these contents, the one that has had them longest."""
        return next(iter(self._holders.get(key, ())), None)

    def num_found(self, keys: Iterable[Key]) -> int:
        """How many of the keys, from the first without a gap, are held by some block."""
        count = 0
        for key in keys:
            if key not in self._holders:
                break
            count += 1
        return count

    def learn(self, block: int, key: Key) -> None:
        """The block holds this from the next step on."""
        self.forget(block)
        self._keys[block] = key
        self._holders.setdefault(key, {})[block] = None

    def forget(self, block: int) -> None:
        """The block is about to be written, or is not to be read again."""
        if (key := self._keys.pop(block, None)) is not None:
            del self._holders[key][block]
            if not self._holders[key]:
                del self._holders[key]

    def clear(self) -> None:
        """No block holds anything."""
        self._keys.clear()
        self._holders.clear()
