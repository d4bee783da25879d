"""Replicas that follow the work: control plane, runner, and a double of TorchServe."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol

import pytest

from handlers.scale_section import Scale
from scheduler.cluster_view import READY
from scheduler.scaling import ScaleStory
from scheduler.task import TaskState
from tests.integration.runner_system import System, running_system
from tests.waiting import until

#: Windows as short as a test can wait for.
QUICK = {"up_window_s": 0.0, "down_window_s": 0.5, "cooldown_s": 0.0}


class Opening(Protocol):
    def __call__(self, scale: Scale) -> AbstractAsyncContextManager[System]: ...


@pytest.fixture
def opening(tmp_path: Path, free_port: int, monkeypatch: Any) -> Opening:
    # A quarter of a minute is longer than a test should wait.
    monkeypatch.setattr("scheduler.autoscaler.load.LEAST_S", 0.5)
    return lambda scale: running_system(tmp_path, free_port, monkeypatch, scale)


async def story(system: System) -> ScaleStory:
    return await system.control.operations.scale_story("counting", 100)


def ready(system: System) -> int:
    """Replicas that the control plane knows to take work."""
    nodes = system.control.dispatcher.nodes()
    return sum(replica.state == READY for node in nodes for replica in node.replicas)


async def test_replicas_come_with_the_work_and_go_without_cutting_any(opening: Opening) -> None:
    async with opening(Scale(max=2, **QUICK)) as system:
        await until(lambda: ready(system) == 1)
        tasks = [await system.submit(tokens=200) for _ in range(8)]

        await until(lambda: ready(system) == 2)
        ended = await asyncio.gather(*(system.final(task.id) for task in tasks))
        last = await system.submit(tokens=300)
        await until(lambda: ready(system) == 1)

        assert {task.state for task in ended} == {TaskState.SUCCEEDED}
        assert (await system.final(last.id)).state is TaskState.SUCCEEDED
        for task in [*tasks, last]:
            assert await system.outcomes(task.id) == ["succeeded"]
        changes = [d.action for d in (await story(system)).decisions if d.action != "nothing"]
        assert changes == ["down", "up"]


async def test_work_starts_a_replica_from_none_and_none_is_left_without(opening: Opening) -> None:
    async with opening(Scale(max=1, min=0, idle_s=0.2, **QUICK)) as system:
        await until(lambda: ready(system) == 1)
        await until(lambda: not system.node.torchserve.models)

        task = await system.submit(tokens=5)

        assert (await system.final(task.id)).state is TaskState.SUCCEEDED
        told = await story(system)
        assert [d.reason for d in told.decisions if d.action != "nothing"][:2] == [
            "from_zero",
            "idle",
        ]
        assert len(told.measures[0].start_times_s) >= 1


async def test_work_that_drains_for_too_long_is_parked_and_goes_on_elsewhere(
    opening: Opening,
) -> None:
    async with opening(Scale(max=2, drain_s=0.3, **QUICK)) as system:
        await system.control.operations.set_desired_replicas("counting", 2)
        await until(lambda: ready(system) == 2)
        tasks = [await system.submit(tokens=300) for _ in range(4)]
        for task in tasks:
            await system.until_tokens(task.id, 3)

        await system.control.operations.set_desired_replicas("counting", 1)

        await until(lambda: len(system.node.torchserve.models) == 1)
        for task in tasks:
            assert (await system.final(task.id)).state is TaskState.SUCCEEDED
            assert await system.tokens(task.id) == list(range(300))
        outcomes = [tuple(await system.outcomes(task.id)) for task in tasks]
        assert set(outcomes) == {("succeeded",), ("parked", "succeeded")}


async def test_an_operator_s_number_is_given_back(opening: Opening) -> None:
    async with opening(Scale(max=3, **QUICK)) as system:
        await system.control.operations.set_desired_replicas("counting", 3)
        await until(lambda: ready(system) == 3)
        held = await until(
            lambda: story(system), lambda told: told.decisions[0].reason == "operator"
        )

        await system.control.operations.give_back_replicas("counting")

        await until(lambda: ready(system) == 1)
        assert held.decisions[0].num_after == 3
        # What ran under the operator's number goes by the rules of the work's.
        assert (await story(system)).decisions[0].num_after == 1
