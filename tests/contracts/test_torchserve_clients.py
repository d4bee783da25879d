"""TorchServe's clients against TorchServe, and against the double that stands for it.

The double is worth something only as long as it passes the same tests.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from handlers.wire import Chunk, Failure, Finish, TokenLogprob
from scheduler.clock import SystemClock
from scheduler.errors import Unavailable
from scheduler.testing.torchserve import FakeTorchServe
from scheduler.torchserve import process
from scheduler.torchserve.endpoint import Endpoint
from scheduler.torchserve.inference import Answer, Inference, WorkerLost
from scheduler.torchserve.management import Management, ManagementError
from tests.waiting import until, wait_for

REPLICA = "counting__r0"
#: A worker imports torch, which takes long on a machine that is busy with other tests.
pytestmark = pytest.mark.timeout(180)


def make_store(folder: Path, root: Path) -> Path:
    shutil.copytree(root / "tests" / "data" / "counting_replica", folder / REPLICA)
    return folder


@pytest.fixture(scope="module")
def real_torchserve(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A TorchServe that runs; its state folder."""
    state = tmp_path_factory.mktemp("state")
    store = make_store(tmp_path_factory.mktemp("store"), root)
    process.write_config(state, store, root / "config.properties")
    home = process.folder(state)
    with (home / "output.log").open("wb") as output:
        java = subprocess.Popen(
            process.command(state),
            env=process.environment(state),
            cwd=home,
            stdout=output,
            stderr=output,
        )
    try:
        wait_for(
            "TorchServe's keys or its end",
            lambda: (home / process.KEY_FILE).exists() or java.poll() is not None,
            60,
        )
        assert java.poll() is None, (home / "output.log").read_text()
        yield state
    finally:
        java.terminate()
        java.wait(timeout=20)
        process.sweep_orphans(state)
        shutil.rmtree(process.temp_folder(state), ignore_errors=True)


async def until_answering(management: Management) -> None:
    async def answers() -> bool:
        try:
            await management.names()
        except Unavailable:
            return False
        return True

    await until(answers, timeout_s=60)


@dataclass
class Served:
    state: Path
    inference: Inference
    management: Management

    async def until_ready(self, name: str = REPLICA) -> None:
        await until(
            lambda: self.management.describe(name),
            lambda found: found is not None and found.is_ready,
            timeout_s=120,
        )

    async def collect(self, document: dict[str, Any], replica: str = REPLICA) -> list[Any]:
        return [frame async for frame in self.inference.stream(replica, document, 20)]


@pytest_asyncio.fixture(params=["double", pytest.param("real", marks=pytest.mark.torchserve)])
async def served(
    request: pytest.FixtureRequest, root: Path, tmp_path: Path
) -> AsyncIterator[Served]:
    """Clients of a TorchServe; the real one keeps its replica from one test to the next."""
    fake = None
    if request.param == "real":
        state = request.getfixturevalue("real_torchserve")
    else:
        state = tmp_path / "state"
        fake = FakeTorchServe(state, make_store(tmp_path / "store", root))
        await fake.start()
    endpoint = Endpoint(state)
    management = Management(endpoint, SystemClock())
    served = Served(state, Inference(endpoint), management)
    await until_answering(management)
    try:
        yield served
    finally:
        await management.close()
        await served.inference.close()
        if fake is not None:
            await fake.stop()


@pytest_asyncio.fixture
async def ready(served: Served) -> Served:
    """With one replica that is ready."""
    await served.management.register(REPLICA, REPLICA)
    found = await served.management.describe(REPLICA)
    if found is not None and not found.workers:  # a test has scaled it down
        await served.management.scale(REPLICA, 1)
    await served.until_ready()
    return served


async def test_describe_returns_nothing_for_an_unknown_model(served: Served) -> None:
    assert await served.management.describe("nobody__r0") is None


async def test_registering_an_archive_that_is_not_there_is_refused(served: Served) -> None:
    with pytest.raises(ManagementError, match="missing__r0"):
        await served.management.register("missing__r0", "missing__r0")


async def test_a_registered_replica_becomes_ready_and_is_listed(ready: Served) -> None:
    assert await ready.management.names() == [REPLICA]


async def test_registering_twice_changes_nothing(ready: Served) -> None:
    await ready.management.register(REPLICA, REPLICA)

    assert (await ready.management.describe(REPLICA)).is_ready


async def test_unregistering_twice_changes_nothing(ready: Served) -> None:
    await ready.management.unregister(REPLICA)
    await ready.management.unregister(REPLICA)

    assert await ready.management.names() == []


async def test_a_generation_streams_chunks_and_then_its_finish(ready: Served) -> None:
    frames = await ready.collect({"prompt": "x", "max_new_tokens": 4})

    assert frames == [*(Chunk((n,), f"{n} ") for n in range(4)), Finish("length", 1, 4)]


async def test_a_resumed_generation_goes_on_after_its_tokens(ready: Served) -> None:
    frames = await ready.collect({"prompt": "x", "max_new_tokens": 4, "generated": [0, 1, 2]})

    assert frames == [Chunk((3,), "3 "), Finish("length", 1, 4)]


async def test_a_generation_that_has_all_its_tokens_only_finishes(ready: Served) -> None:
    frames = await ready.collect({"prompt": "x", "max_new_tokens": 2, "generated": [0, 1]})

    assert frames == [Finish("length", 1, 2)]


async def test_several_answers_go_on_each_from_its_own_tokens(ready: Served) -> None:
    several = {"n": 2, "generated": [[0], [0, 1]], "logprobs": 1}
    frames = await ready.collect({"prompt": "x", "max_new_tokens": 3, **several})

    numbers = [(1, 0), (2, 0), (2, 1)]
    likely = {number: (TokenLogprob(-0.5, ((number, -0.5),)),) for number in (1, 2)}
    chunks = [Chunk((number,), f"{number} ", index, likely[number]) for number, index in numbers]
    assert frames == [*chunks, Finish("length", 1, 6, ("length", "length"))]


async def test_what_the_handler_refuses_is_a_failure(ready: Served) -> None:
    frames = await ready.collect({"prompt": "refuse", "max_new_tokens": 4})

    assert frames == [Failure(422, "not this", "prompt")]


async def test_an_answer_that_does_not_stream_comes_whole(ready: Served) -> None:
    [answer] = await ready.collect({"input": ["a", "b"]})

    assert isinstance(answer, Answer)
    assert answer.document["embeddings"] == [[1.0, 2.0], [1.0, 2.0]]


async def test_a_worker_that_dies_loses_the_task_after_good_chunks(ready: Served) -> None:
    frames: list[Any] = []

    async def collect() -> None:
        document = {"prompt": "die", "max_new_tokens": 9}
        async for frame in ready.inference.stream(REPLICA, document, 20):
            frames.append(frame)

    with pytest.raises(WorkerLost, match=REPLICA):
        await collect()

    assert frames == [Chunk((n,), f"{n} ") for n in range(3)][: len(frames)]


async def test_a_replica_whose_worker_died_becomes_ready_again(ready: Served) -> None:
    with pytest.raises(WorkerLost):
        await ready.collect({"prompt": "die", "max_new_tokens": 9})

    await until(lambda: ready.management.describe(REPLICA), lambda found: not found.is_ready)
    await ready.until_ready()
    assert await ready.collect({"prompt": "x", "max_new_tokens": 1})


async def test_a_replica_that_is_not_registered_loses_the_task(served: Served) -> None:
    with pytest.raises(WorkerLost, match="HTTP 404"):
        await served.collect({"prompt": "x", "max_new_tokens": 1}, "nobody__r0")


async def test_a_replica_scaled_to_nothing_loses_the_task(ready: Served) -> None:
    await ready.management.scale(REPLICA, 0)

    with pytest.raises(WorkerLost, match="HTTP 503"):
        await ready.collect({"prompt": "x", "max_new_tokens": 1})


async def test_a_replica_scaled_down_and_up_becomes_ready_again(ready: Served) -> None:
    await ready.management.scale(REPLICA, 0)
    await ready.management.scale(REPLICA, 1)
    await ready.until_ready()

    assert await ready.collect({"prompt": "x", "max_new_tokens": 1})


async def test_closing_a_stream_frees_its_slot_within_a_second(ready: Served) -> None:
    document = {"prompt": "x", "max_new_tokens": 100_000}
    async with aclosing(ready.inference.stream(REPLICA, document, 20)) as frames:
        await anext(frames)

    await until(
        lambda: ready.collect({"input": ["a"]}),
        lambda frames: frames[0].document["num_live"] <= 1,
        timeout_s=1,
    )


async def test_keys_that_were_replaced_meanwhile_are_read_again(ready: Served) -> None:
    document = {"prompt": "x", "max_new_tokens": 1}
    await ready.collect(document)
    hour = ready.management._clock.now() + 3600
    ready.management._clock = type("Later", (), {"now": lambda self: hour})()

    assert await ready.management.renew_keys()

    assert await ready.collect(document)
    assert await ready.management.names() == [REPLICA]
