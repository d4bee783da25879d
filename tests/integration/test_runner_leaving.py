"""What a runner does with its leases when it is stopped, or its TorchServe hangs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest_asyncio

from scheduler.errors import StoreUnavailable
from scheduler.runner.service import _idle_timeout_s
from scheduler.task import TaskState
from tests.integration.runner_system import System, config, running_system
from tests.waiting import until


@pytest_asyncio.fixture
async def system(tmp_path: Path, free_port: int, monkeypatch: Any) -> AsyncIterator[System]:
    async with running_system(tmp_path, free_port, monkeypatch) as system:
        yield system


async def test_a_runner_that_is_stopped_gives_its_leases_back_at_once(system: System) -> None:
    tasks = [await system.submit(tokens=100_000) for _ in range(6)]
    for task in tasks[:4]:
        await system.until_tokens(task.id, 3)

    await system.node.close()

    found = [await system.control.book.task(task.id) for task in tasks]
    assert {task.state for task in found} == {TaskState.QUEUED}
    # What was given back did not come back while the runner was leaving.
    assert [task.attempt for task in found] == [1, 1, 1, 1, 0, 0]
    [attempt] = await system.control.book.attempts(tasks[0].id)
    assert attempt.reason == "the runner was stopped"


async def test_a_runner_that_is_stopped_does_not_wait_for_a_control_plane_that_is_away(
    system: System,
) -> None:
    task = await system.submit(tokens=100_000)
    await system.until_tokens(task.id, 3)
    await system.control.close()

    async with asyncio.timeout(2):
        await system.node.close()

    await system.control.open()


async def test_a_runner_that_is_stopped_does_not_wait_for_ever_for_an_answer(
    system: System, monkeypatch: Any
) -> None:
    async def refuse(*_: Any) -> None:
        raise StoreUnavailable("for the test")

    task = await system.submit(tokens=100_000)
    await system.until_tokens(task.id, 3)
    monkeypatch.setattr("scheduler.runner.service._FAREWELL_S", 0.2)
    monkeypatch.setattr(system.control.book, "release", refuse)

    async with asyncio.timeout(2):
        await system.node.close()


async def test_a_worker_that_falls_silent_loses_the_task(system: System, monkeypatch: Any) -> None:
    monkeypatch.setattr("scheduler.runner.service._idle_timeout_s", lambda config: 0.2)
    task = await system.submit(tokens=60)
    await system.until_tokens(task.id, 3)

    system.node.torchserve.step_s = 1.0
    await until(lambda: system.outcomes(task.id), lambda outcomes: outcomes[0] != "running")
    system.node.torchserve.step_s = 0.005

    assert (await system.final(task.id)).state is TaskState.SUCCEEDED
    assert await system.tokens(task.id) == list(range(60))


def test_an_answer_may_be_silent_for_twice_the_models_response_timeout() -> None:
    assert _idle_timeout_s(replace(config(), response_timeout_s=90)) == 180
