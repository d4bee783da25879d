"""Running work of a lower class makes room for a higher one, and loses nothing by it.

Real dispatcher, real runner, real store; TorchServe is its double, which counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_asyncio

from scheduler.moves import Preemption
from scheduler.task import Task, TaskState
from tests.integration.runner_system import System, running_system

#: Tasks that the replica works on at once, and how long a batch answer is: two seconds or so.
NUM_SLOTS = 4
NUM_TOKENS = 400


@pytest_asyncio.fixture
async def system(tmp_path: Path, free_port: int, monkeypatch: Any) -> AsyncIterator[System]:
    async with running_system(tmp_path, free_port, monkeypatch) as system:
        await system.control.close()
        system.control.preemption = Preemption(after_s=0.05, slice_s=0.05)
        await system.control.open()
        yield system


async def filled(system: System, **fields: Any) -> list[Task]:
    """Batch tasks in every slot, each in the middle of its answer."""
    tasks = [
        await system.submit(tokens=NUM_TOKENS, priority_class="batch", **fields)
        for _ in range(NUM_SLOTS)
    ]
    for task in tasks:
        await system.until_tokens(task.id, 5)
    return tasks


async def test_an_interactive_task_parks_a_batch_task_which_then_finishes_the_same(
    system: System,
) -> None:
    batch = await filled(system)

    interactive = await system.submit(tokens=5, priority_class="interactive")
    first = await system.final(interactive.id)
    still_running = [await system.control.book.task(task.id) for task in batch]
    finished = [await system.final(task.id) for task in batch]

    assert first.state is TaskState.SUCCEEDED
    assert not any(task.state.is_final for task in still_running)
    assert {task.state for task in finished} == {TaskState.SUCCEEDED}
    outcomes = sorted([await system.outcomes(task.id) for task in batch], key=len)
    assert outcomes == [*[["succeeded"]] * (NUM_SLOTS - 1), ["parked", "succeeded"]]
    for task in batch:
        assert await system.tokens(task.id) == list(range(NUM_TOKENS))
    assert [task.num_lost for task in finished] == [0] * NUM_SLOTS


async def test_work_that_could_not_go_on_is_not_parked(system: System) -> None:
    batch = await filled(system, resume="none")

    interactive = await system.submit(tokens=5, priority_class="interactive")
    await system.final(interactive.id)

    for task in batch:
        await system.final(task.id)
        assert await system.outcomes(task.id) == ["succeeded"]


async def test_a_lower_class_parks_nobody(system: System) -> None:
    running = [
        await system.submit(tokens=100, priority_class="interactive") for _ in range(NUM_SLOTS)
    ]
    for task in running:
        await system.until_tokens(task.id, 5)

    waiting = await system.submit(tokens=5, priority_class="batch")
    async with asyncio.timeout(15):
        await system.final(waiting.id)

    assert {tuple(await system.outcomes(task.id)) for task in running} == {("succeeded",)}
