"""Builders for tests of the schedule."""

from __future__ import annotations

from dataclasses import replace

from handlers.pipeline.lanes import LaneModel
from handlers.pipeline.schedule import Schedule, Sequence, Shape
from handlers.pipeline.step import Draw, Step


def schedule(stages: int = 1, rows: int = 4, chunk: int = 8, **how: object) -> Schedule:
    lanes = how.pop("lanes", None)
    shape = Shape(stages, rows, chunk, 256, 4 * rows, has_prefix_cache=False)
    return Schedule(replace(shape, **how), LaneModel(stages, lanes))


def sequence(num_prompt: int, name: str = "s") -> Sequence:
    return Sequence(name, 0, list(range(num_prompt)), num_prompt)


def added(to: Schedule, *lengths: int) -> list[Sequence]:
    sequences = [sequence(length, str(index)) for index, length in enumerate(lengths)]
    for each in sequences:
        to.add(each)
    return sequences


def issued(by: Schedule) -> Step:
    step = by.issue()
    assert step is not None
    return step


def drawn(step: Step, token_id: int = 7) -> list[Draw | None]:
    return [Draw(token_id) if row.is_drawn else None for row in step.rows]


def taken(by: Schedule, step: Step, token_id: int = 7) -> list[str]:
    """Names of those that grew by the step's draws."""
    return [each.request_id for each, _ in by.apply(step.number, drawn(step, token_id))]


def begun(by: Schedule, *lengths: int) -> list[Sequence]:
    """Sequences whose prompts are computed and that await nothing."""
    sequences = added(by, *lengths)
    while any(len(each.token_ids) == each.num_prompt for each in sequences):
        flying = []
        while (step := by.issue()) is not None:
            flying.append(step)
        for step in flying:
            taken(by, step)
    return sequences


def shape_of(step: Step) -> list[tuple[int, int, int]]:
    return [(row.slot, row.start, row.num_tokens) for row in step.rows]
