"""Which contenders there are: the files of ``contenders``."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.queue.contenders.base import Facts

#: Tasks that every contender may work on at once.
SLOTS = 8


@dataclass(frozen=True, slots=True)
class Entry:
    """A contender with a number of slots."""

    name: str
    facts: Facts
    slots: int = SLOTS

    @property
    def label(self) -> str:
        is_usual = self.slots == SLOTS
        return self.facts.label if is_usual else f"{self.facts.label}, {self.slots} slots"

    @property
    def key(self) -> str:
        """Differs between any two."""
        return f"{self.name}-{self.slots}"


def names() -> list[str]:
    """All contenders, ours first."""
    folder = Path(__file__).parent / "contenders"
    found = [path.stem for path in folder.glob("*.py") if path.stem != "base"]
    return sorted(found, key=lambda name: (not name.startswith("plait"), name))


def module(name: str) -> Any:
    """The contender's file."""
    return importlib.import_module(f"benchmarks.queue.contenders.{name}")


def entries(chosen: Sequence[str], part: str) -> list[Entry]:
    """Those of the chosen contenders that take part."""
    facts = {name: module(name).FACTS for name in chosen}
    return [Entry(name, each) for name, each in facts.items() if part in each.parts]


def versions(facts: Facts) -> str:
    """Of what it is made of."""
    return ", ".join(f"{name} {metadata.version(name)}" for name in facts.packages)
