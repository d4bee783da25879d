"""Tables as Markdown, the figures that have goals, and the line that ends a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """A number and what it should be."""

    name: str
    value: float
    #: None: told, not judged.
    goal: float | None = None
    #: Whether less is better.
    is_cost: bool = False
    unit: str = ""

    @property
    def is_met(self) -> bool:
        if self.goal is None:
            return True
        return self.value <= self.goal if self.is_cost else self.value >= self.goal

    def __str__(self) -> str:
        if self.goal is None:
            return f"{self.name} {self.value:.3g}{self.unit}"
        sign = "<=" if self.is_cost else ">="
        met = "met" if self.is_met else "MISSED"
        return f"{self.name} {self.value:.3g}{self.unit} (goal {sign} {self.goal:g}: {met})"


@dataclass
class Report:
    """Prints what it is given, and keeps it."""

    #: The benchmark's name, which begins its last line.
    name: str
    figures: list[Figure] = field(default_factory=list)
    tables: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        self.tables.append({"title": title, "columns": list(columns), "rows": list(rows)})
        print(f"\n### {title}\n")
        for row in (columns, ["---"] * len(columns), *rows):
            print("| " + " | ".join(map(str, row)) + " |")
        print(flush=True)

    def figure(self, figure: Figure) -> None:
        self.figures.append(figure)
        print(f"{figure}", flush=True)

    def note(self, text: str) -> None:
        self.notes.append(text)
        print(text, flush=True)

    def line(self) -> str:
        """The last line of a run: all figures."""
        return f"{self.name}: " + " | ".join(map(str, self.figures))

    def to_document(self) -> dict[str, Any]:
        figures = [{**asdict(each), "is_met": each.is_met} for each in self.figures]
        return {"figures": figures, "tables": self.tables, "notes": self.notes}


def percent(ratio: float) -> str:
    return f"{100 * ratio:.0f} %"


def rate(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"
