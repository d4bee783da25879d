"""The engine's report: beside the figures, whether all ways produced the same tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks import report


@dataclass
class Report(report.Report):
    """Prints what it is given, and keeps it."""

    name: str = "bench-engine"
    #: Contenders whose greedy tokens in float32 differ from generate's, and by how many jobs.
    wrong: list[str] = field(default_factory=list)
    #: Jobs whose tokens were compared in float32.
    num_compared: int = 0

    def line(self) -> str:
        tokens = "tokens not compared"
        if self.num_compared:
            tokens = f"tokens of {self.num_compared} answers equal"
        if self.wrong:
            tokens = f"tokens differ: {'; '.join(self.wrong)}"
        return " | ".join([super().line(), tokens])

    def to_document(self) -> dict[str, Any]:
        return super().to_document() | {"wrong": self.wrong}
