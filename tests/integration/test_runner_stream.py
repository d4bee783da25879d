"""Runner and control plane over real gRPC, a real store, and a double of TorchServe."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest_asyncio

from scheduler.task import Submission, TaskState
from tests.integration.runner_system import REPLICA, System, running_system
from tests.waiting import until


@pytest_asyncio.fixture
async def system(tmp_path: Path, free_port: int, monkeypatch: Any) -> AsyncIterator[System]:
    async with running_system(tmp_path, free_port, monkeypatch) as system:
        yield system


async def test_a_task_is_generated_and_its_tokens_are_in_the_journal(system: System) -> None:
    task = await system.submit(tokens=20)

    done = await system.final(task.id)

    assert done.state is TaskState.SUCCEEDED
    assert done.result == {
        "finish_reason": "length",
        "num_prompt_tokens": 1,
        "num_output_tokens": 20,
    }
    assert await system.tokens(task.id) == list(range(20))


async def test_several_answers_go_on_where_they_were_when_their_worker_died(system: System) -> None:
    task = await system.submit(prompt="die", tokens=10, n=3, logprobs=1)

    done = await system.final(task.id)

    assert (done.state, done.attempt, done.num_tokens) == (TaskState.SUCCEEDED, 2, 30)
    assert done.result is not None
    assert done.result["finish_reasons"] == ["length"] * 3
    chunks = await system.control.book.chunks(task.id)
    for index in range(3):
        own = [token for chunk in chunks if chunk.index == index for token in chunk.token_ids]
        assert own == list(range(10))
    assert all(chunk.logprobs[0].logprob == -0.5 for chunk in chunks)


async def test_an_answer_that_cannot_go_on_is_not_mixed_with_another(system: System) -> None:
    task = await system.submit(prompt="die", tokens=10, resume="none")

    done = await system.final(task.id)

    assert (done.state, done.attempt) == (TaskState.FAILED, 1)
    assert done.error is not None
    assert "cannot go on from its" in done.error.message


async def test_more_tasks_than_slots_are_all_served(system: System) -> None:
    tasks = [await system.submit(tokens=5) for _ in range(15)]

    states = {(await system.final(task.id)).state for task in tasks}

    assert states == {TaskState.SUCCEEDED}


async def test_a_request_the_handler_refuses_fails_with_its_field(system: System) -> None:
    task = await system.submit(prompt="refuse")

    done = await system.final(task.id)

    assert done.state is TaskState.FAILED
    assert done.error is not None
    assert (done.error.status, done.error.field) == (422, "prompt")


async def test_an_answer_that_does_not_stream_is_the_result(system: System) -> None:
    task, _ = await system.control.book.submit(
        Submission("ann", "counting", {"input": ["a", "b"]}, 1)
    )

    done = await system.final(task.id)

    assert done.state is TaskState.SUCCEEDED
    assert done.result == {"embeddings": [[1.0, 2.0], [1.0, 2.0]], "num_live": 1}


async def test_a_task_whose_worker_died_goes_on_after_its_tokens(system: System) -> None:
    task = await system.submit(tokens=60)
    await system.until_tokens(task.id, 5)

    system.node.torchserve.kill_worker(REPLICA)

    assert (await system.final(task.id)).state is TaskState.SUCCEEDED
    assert await system.tokens(task.id) == list(range(60))
    assert await system.outcomes(task.id) == ["lost", "succeeded"]


async def test_cancelling_closes_the_request_within_a_second(system: System) -> None:
    task = await system.submit(tokens=100_000)
    await system.until_tokens(task.id, 3)

    await system.control.book.cancel(task.id)

    await until(lambda: system.node.torchserve.num_running(REPLICA) == 0, timeout_s=1)
    assert (await system.final(task.id)).state is TaskState.CANCELLED


async def test_no_token_is_lost_or_repeated_when_the_control_plane_restarts(
    system: System,
) -> None:
    task = await system.submit(tokens=300)
    await system.until_tokens(task.id, 5)

    await system.control.close()
    # The generation goes on meanwhile.
    lease = system.node.runner._core._leases[task.id]
    await until(lambda: len(lease.unacknowledged) >= 10)
    await system.control.open()

    assert (await system.final(task.id)).state is TaskState.SUCCEEDED
    assert await system.tokens(task.id) == list(range(300))
    assert await system.outcomes(task.id) == ["succeeded"]


async def test_a_finish_while_the_control_plane_is_away_arrives_later(system: System) -> None:
    task = await system.submit(tokens=60)
    await system.until_tokens(task.id, 2)

    await system.control.close()
    await until(lambda: system.node.torchserve.num_running(REPLICA) == 0)
    await system.control.open()

    assert (await system.final(task.id)).state is TaskState.SUCCEEDED
    assert await system.tokens(task.id) == list(range(60))
    assert await system.outcomes(task.id) == ["succeeded"]


async def test_a_restarted_runner_has_its_leases_requeued_at_once(system: System) -> None:
    task = await system.submit(tokens=100)
    await system.until_tokens(task.id, 5)

    await system.node.vanish()
    system.node.open()

    assert (await system.final(task.id)).state is TaskState.SUCCEEDED
    assert await system.tokens(task.id) == list(range(100))
    assert await system.outcomes(task.id) == ["lost", "succeeded"]


async def test_a_restarted_runner_adopts_the_replica_that_runs(system: System) -> None:
    await until(lambda: REPLICA in system.node.torchserve.models)
    model = system.node.torchserve.models[REPLICA]
    await system.node.close()

    system.node.open()
    task = await system.submit(tokens=3)
    await system.final(task.id)

    assert system.node.torchserve.models[REPLICA] is model


async def test_a_task_of_a_runner_that_is_gone_is_requeued_when_its_lease_ends(
    system: System,
) -> None:
    book = system.control.book
    task = await system.submit(tokens=100_000)
    await system.until_tokens(task.id, 3)
    first = (await book.task(task.id)).lease_expires_at
    assert first is not None
    # Shortened only now: the first heartbeat after a grant may come late on a busy machine.
    book.rules = replace(book.rules, lease_ttl_s=1.0)
    await until(lambda: book.task(task.id), lambda seen: (seen.lease_expires_at or first) < first)

    await system.node.vanish()

    await until(
        lambda: system.control.book.task(task.id), lambda seen: seen.state is TaskState.QUEUED
    )
    assert await system.outcomes(task.id) == ["lost"]


async def test_a_runner_is_told_to_stop_what_was_given_away_behind_its_back(
    system: System,
) -> None:
    task = await system.submit(tokens=100_000)
    await system.until_tokens(task.id, 3)
    fence = (await system.control.book.task(task.id)).fence

    await system.control.book.release(task.id, fence, "for the test")

    await until(lambda: system.node.torchserve.num_abandoned == 1)
    await system.control.book.cancel(task.id)
    assert (await system.outcomes(task.id))[0] == "lost"


async def test_scaling_to_nothing_waits_for_the_work_in_flight(system: System) -> None:
    task = await system.submit(tokens=60)
    await system.until_tokens(task.id, 3)

    await system.control.operations.set_desired_replicas("counting", 0)

    assert (await system.final(task.id)).state is TaskState.SUCCEEDED
    assert await system.outcomes(task.id) == ["succeeded"]
    await until(lambda: not system.node.torchserve.models)


async def test_a_restarted_torchserve_gets_its_replica_again(system: System) -> None:
    task = await system.submit(tokens=100)
    await system.until_tokens(task.id, 5)

    await system.node.torchserve.stop()
    await system.node.torchserve.start()

    assert (await system.final(task.id)).state is TaskState.SUCCEEDED
    assert await system.tokens(task.id) == list(range(100))


async def test_work_on_a_worker_that_says_ready_and_answers_nobody_goes_on_anew(
    system: System, monkeypatch: Any
) -> None:
    monkeypatch.setattr("scheduler.runner.service._idle_timeout_s", lambda config: 0.3)
    await system.final((await system.submit(tokens=1)).id)
    zombie = system.node.torchserve.models[REPLICA]
    system.node.torchserve.become_zombie(REPLICA)

    task = await system.submit(tokens=20)

    assert (await system.final(task.id)).state is TaskState.SUCCEEDED
    assert await system.tokens(task.id) == list(range(20))
    assert system.node.torchserve.models[REPLICA] is not zombie


async def test_the_node_and_its_replica_are_seen(system: System) -> None:
    with contextlib.suppress(TimeoutError):
        await until(lambda: any(n.replicas for n in system.control.dispatcher.nodes()), timeout_s=5)
    task = await system.submit(tokens=3)
    await system.final(task.id)

    [node] = system.control.dispatcher.nodes()

    assert (node.node, node.connected) == ("node-1", True)
    assert [(r.name, r.state, r.capacity) for r in node.replicas] == [(REPLICA, "ready", 4)]
