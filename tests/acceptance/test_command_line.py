"""The commands a user types, against a running Plait."""

from __future__ import annotations

import json

import pytest

from tests.acceptance.conftest import Reference
from tests.acceptance.system import System
from tests.waiting import wait_for

pytestmark = [pytest.mark.torchserve, pytest.mark.timeout(300)]


def test_generate_prints_the_text_and_nothing_else(system: System, reference: Reference) -> None:
    output = system.run("generate", "def main():\n", "--max-new-tokens", "30")

    assert output == reference.text("def main():\n", 30)


def test_a_submitted_task_is_watched_by_its_id(system: System, reference: Reference) -> None:
    task = system.run("submit", "class A:\n", "--max-new-tokens", "20").strip()

    assert system.run("watch", task) == reference.text("class A:\n", 20)
    story = system.run("status", task)
    assert "succeeded" in story
    assert "attempt 1 on demo__r0" in story


def test_a_cancelled_task_says_so(system: System) -> None:
    task = system.submit("demo", prompt="z = ", max_new_tokens=900, ignore_eos=True)

    assert system.run("cancel", task).strip() == "cancelled"
    assert system.wait(task)["state"] == "cancelled"


def test_a_refused_request_exits_with_1_and_names_the_field(system: System) -> None:
    process = system.plait("generate", "x", "--top-p", "7")
    output, errors = process.communicate(timeout=60)

    assert process.returncode == 1
    assert output == ""
    assert "top_p" in errors


def test_models_and_workers_show_what_runs(system: System) -> None:
    assert "demo" in system.run("models")
    nodes = json.loads(system.run("workers", "--json"))["nodes"]
    assert {replica["model"] for replica in nodes[0]["replicas"]} == {"demo", "solo", "minilm"}


def test_scaling_adds_a_replica_that_works_and_drains_one_that_does(system: System) -> None:
    def ready() -> set[str]:
        nodes = system.get("/v1/nodes")["nodes"]
        replicas = [r for node in nodes for r in node["replicas"] if r["model"] == "solo"]
        return {r["name"] for r in replicas if r["state"] == "ready"}

    system.run("scale", "solo", "2")
    wait_for("two replicas", lambda: len(ready()) == 2, 120)
    tasks = [
        system.submit("solo", prompt=f"n = {i}\n", max_new_tokens=300, ignore_eos=True)
        for i in range(4)
    ]
    wait_for("both to work", lambda: len(working(system, tasks)) == 2)

    system.run("scale", "solo", "1")
    final = [system.wait(task) for task in tasks]

    wait_for("one replica", lambda: len(ready()) == 1, 60)
    assert {task["state"] for task in final} == {"succeeded"}
    assert {len(task["attempts"]) for task in final} == {1}, "nobody's work was taken"


def working(system: System, tasks: list[str]) -> set[str]:
    """Replicas that hold one of the tasks."""
    shown = [system.get(f"/v1/tasks/{task}") for task in tasks]
    return {task["replica"] for task in shown if task["state"] == "leased"}
