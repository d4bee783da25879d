"""Any process dies in the middle of a generation, and the answer does not change.

Each victim is killed with SIGKILL once some tokens have arrived; whoever watches sees exactly the
tokens of an undisturbed run, none missing and none twice, and the attempts say what happened.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import psutil
import pytest

from tests.acceptance.conftest import Reference
from tests.acceptance.system import System, events, watch_to_the_end
from tests.waiting import wait_for

pytestmark = [pytest.mark.torchserve, pytest.mark.timeout(300)]

NUM_TOKENS = 600
#: What model_configs/demo.yaml calls batchSize.
NUM_SLOTS = 16
VICTIMS: dict[str, Callable[[System], psutil.Process]] = {
    "stage 0": lambda system: system.stage("demo", 0),
    "stage 1": lambda system: system.stage("demo", 1),
    "the driver": lambda system: system.rank("demo", 0),
    "the runner": lambda system: system.part("runner"),
    "the control plane": lambda system: system.part("control"),
}


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_killed_process_costs_no_token(system: System, reference: Reference, victim: str) -> None:
    prompt = f"# {victim}\nimport os\n"
    task = system.submit("demo", prompt=prompt, max_new_tokens=NUM_TOKENS, ignore_eos=True)
    wait_for("the first tokens", lambda: num_chunks(system, task) > 10)

    VICTIMS[victim](system).kill()
    tokens = watch_to_the_end(task, system)

    final = system.wait(task)
    assert final["state"] == "succeeded", final
    assert tokens == final["output"]["token_ids"]
    assert tokens == reference.tokens(prompt, NUM_TOKENS, ignore_eos=True)
    if victim.startswith("stage"):  # the driver brings it back, and nobody else notices
        assert len(final["attempts"]) == 1
    elif victim != "the control plane":  # the others keep working while it is away
        assert len(final["attempts"]) >= 2
        assert final["attempts"][0]["outcome"] == "lost"
        assert final["attempts"][0]["reason"]


def num_chunks(system: System, task: str) -> int:
    return int(system.get(f"/v1/tasks/{task}")["num_chunks"])


def test_the_command_line_resumes_by_itself_when_the_control_plane_is_killed(
    system: System, reference: Reference
) -> None:
    prompt = "def resume(self):\n"
    process = system.plait("generate", prompt, "--max-new-tokens", str(NUM_TOKENS))
    task = wait_for(
        "its task to run",
        lambda: next(
            (t for t in system.get("/v1/tasks?state=leased")["tasks"] if t["num_chunks"] > 5), None
        ),
    )

    system.part("control").kill()
    output, errors = process.communicate(timeout=120)

    assert process.returncode == 0, errors
    assert output.rstrip("\n") == reference.text(prompt, NUM_TOKENS).rstrip("\n")
    assert task["model"] == "demo"


def test_a_client_that_leaves_its_stream_frees_the_slot_within_a_second(system: System) -> None:
    body = {"prompt": "x = ", "max_new_tokens": 900, "ignore_eos": True, "stream": True}
    answer = system.post("/predictions/demo", body, stream=True)
    list(itertools.islice(answer.iter_lines(), 3))
    task = answer.headers["X-Plait-Task-Id"]

    answer.close()

    def is_free() -> bool:
        nodes = system.get("/v1/nodes")["nodes"]
        return not any(r["in_flight"] for n in nodes for r in n["replicas"] if r["model"] == "demo")

    wait_for("the slot to be free", is_free, timeout_s=1.0)
    assert system.wait(task)["state"] == "cancelled"


def test_clients_that_leave_a_full_engine_make_room_within_a_second(system: System) -> None:
    short = {"prompt": "x = ", "max_new_tokens": 2, "ignore_eos": True}
    began = time.monotonic()
    system.post("/predictions/demo", short)
    undisturbed_s = time.monotonic() - began
    long = {"prompt": "x = ", "max_new_tokens": 900, "ignore_eos": True, "stream": True}
    answers = [system.post("/predictions/demo", long, stream=True) for _ in range(NUM_SLOTS)]
    for answer in answers:
        list(itertools.islice(answer.iter_lines(), 2))

    began = time.monotonic()
    for answer in answers:
        answer.close()
    system.post("/predictions/demo", short)

    # Were the slots not free it would wait for a long answer to end, ten seconds and more.
    assert time.monotonic() - began < 1.0 + 3 * undisturbed_s


def test_a_submitted_task_goes_on_when_its_watcher_leaves(system: System) -> None:
    task = system.submit("demo", prompt="y = ", max_new_tokens=200, ignore_eos=True)
    list(itertools.islice(events(system, task), 5))

    final = system.wait(task)

    assert final["state"] == "succeeded"
    assert len(final["output"]["token_ids"]) == 200
