"""Two control planes on one PostgreSQL: the runner works for one, clients come to the other.

Either is killed in the middle of a generation, and the answer does not change.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.conftest import Reference
from tests.acceptance.system import ControlPlane, System, watch_to_the_end
from tests.postgres_server import Server
from tests.waiting import wait_for

pytestmark = [pytest.mark.torchserve, pytest.mark.timeout(300)]

NUM_TOKENS = 300


@pytest.fixture(scope="module")
def url(postgres: Server) -> Iterator[str]:
    """A database for both."""
    with postgres.database() as made:
        yield made


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, configs: Path, url: str) -> Iterator[System]:
    """A Plait that serves solo, its control plane on the database."""
    running = System(tmp_path_factory.mktemp("whole"), configs, "solo", store=url)
    running.start()
    yield running
    assert running.stop() == 0


@pytest.fixture
def other(whole: System, tmp_path: Path, configs: Path, url: str) -> Iterator[ControlPlane]:
    """A second control plane, for which nobody works."""
    running = ControlPlane(tmp_path, configs, "solo", store=url)
    running.start()
    yield running
    assert running.stop() in (0, -signal.SIGKILL)


def begin(at: ControlPlane, prompt: str) -> str:
    """A generation that has begun."""
    task = at.submit("solo", prompt=prompt, max_new_tokens=NUM_TOKENS, ignore_eos=True)
    wait_for("the first tokens", lambda: at.get(f"/v1/tasks/{task}")["num_chunks"] > 10)
    return task


def test_an_answer_goes_on_when_the_control_plane_of_its_runner_is_killed(
    whole: System, other: ControlPlane, reference: Reference
) -> None:
    prompt = "import sys\n"
    task = begin(other, prompt)

    whole.part("control").kill()
    tokens = watch_to_the_end(task, other)

    final = other.wait(task)
    assert final["state"] == "succeeded", final
    assert len(final["attempts"]) == 1, "the runner kept working"
    assert tokens == final["output"]["token_ids"]
    assert tokens == reference.tokens(prompt, NUM_TOKENS, ignore_eos=True)


def test_a_client_whose_control_plane_is_killed_goes_on_at_the_other(
    whole: System, other: ControlPlane, reference: Reference
) -> None:
    prompt = "import json\n"
    task = begin(other, prompt)

    tokens = watch_to_the_end(task, other, whole, on_first=other.kill)

    final = whole.wait(task)
    assert final["state"] == "succeeded", final
    assert tokens == reference.tokens(prompt, NUM_TOKENS, ignore_eos=True)
