"""Writes the part of docs/lifecycle.md that follows from the code: its diagram and its table.

    python -m tests.docs.lifecycle_block      # writes it into the file

What moves a task is told here, once for each pair of states; a pair that the code does not have,
or one of the code's that is not told, is an error.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from scheduler.task import TRANSITIONS, TaskState

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "lifecycle.md"
BEGIN: Final = "<!-- generated from scheduler/task.py: begin -->"
END: Final = "<!-- generated from scheduler/task.py: end -->"

#: What makes each move, in a word or two and in a sentence.
CAUSES: Final = {
    ("queued", "leased"): ("claim", "The dispatcher claims it for a replica with room."),
    ("queued", "cancelled"): ("cancel", "Its owner takes it back, or leaves while waiting."),
    ("queued", "expired"): ("deadline", "Its deadline passes while it waits."),
    ("queued", "paused"): ("pause", "Its owner makes it wait."),
    ("leased", "queued"): (
        "attempt lost, or parked",
        "Its first attempt is lost, or it makes room for a higher class.",
    ),
    ("leased", "delayed"): (
        "attempt lost again",
        "A further attempt is lost and others are left: it waits a while first.",
    ),
    ("leased", "paused"): ("pause", "Its owner makes it wait; the work stops."),
    ("leased", "succeeded"): ("finish", "The runner reports a result."),
    ("leased", "failed"): (
        "error, or last attempt lost",
        "The handler refuses the request, or the last attempt is lost.",
    ),
    ("leased", "cancelled"): ("cancel", "Its owner takes it back, or leaves while waiting."),
    ("leased", "expired"): ("deadline", "Its deadline passes while it is worked on."),
    ("delayed", "queued"): ("pause over", "The time for which it had to wait has passed."),
    ("delayed", "paused"): ("pause", "Its owner makes it wait."),
    ("delayed", "cancelled"): ("cancel", "Its owner takes it back, or leaves while waiting."),
    ("delayed", "expired"): ("deadline", "Its deadline passes while it waits."),
    ("paused", "queued"): ("resume", "Its owner lets it go on."),
    ("paused", "cancelled"): ("cancel", "Its owner takes it back, or leaves while waiting."),
    ("paused", "expired"): ("deadline", "Its deadline passes while it waits."),
    ("failed", "queued"): ("requeue", "A dead letter is tried again, by hand."),
}


def block() -> str:
    """Diagram and table, as they have to stand between the two marks."""
    pairs = sorted((a.value, b.value) for a, b in TRANSITIONS)
    if set(pairs) != set(CAUSES):
        raise ValueError(f"told are {sorted(CAUSES)}; the code has {pairs}")
    order = {pair: i for i, pair in enumerate(CAUSES)}
    pairs.sort(key=order.__getitem__)
    diagram = ["```mermaid", "stateDiagram-v2", "    [*] --> queued: submit"]
    diagram += [f"    {a} --> {b}: {CAUSES[a, b][0]}" for a, b in pairs]
    diagram += [f"    {state.value} --> [*]" for state in TaskState if state.is_final]
    table = ["| from | to | when |", "|---|---|---|"]
    table += [f"| `{a}` | `{b}` | {CAUSES[a, b][1]} |" for a, b in pairs]
    return "\n".join([*diagram, "```", "", *table])


def generated_part(text: str) -> str:
    """What stands between the marks."""
    return text.split(BEGIN)[1].split(END)[0].strip("\n")


def main() -> None:
    """Write the block into the page."""
    pattern = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    replacement = f"{BEGIN}\n\n{block()}\n\n{END}"
    text = PAGE.read_text("utf-8")
    PAGE.write_text(pattern.sub(lambda _: replacement, text), "utf-8")


if __name__ == "__main__":
    main()
