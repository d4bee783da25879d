"""Containers from the local provider: real processes, ordered by a real control plane."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.acceptance.system import ROOT, ControlPlane
from tests.waiting import wait_for

PROVIDER = {
    "kind": "local",
    "max_containers": 2,
    "price_per_hour": 0.1,
    "look_s": 0.2,
    "idle_s": 0.5,
    "settings": {"command": [sys.executable, "-m", "scheduler.testing.node"], "stop_timeout_s": 5},
}


class Control(ControlPlane):
    """A control plane alone, with providers."""

    def __init__(self, folder: Path, replicas: int, **providers: Any) -> None:
        configs = folder / "model_configs"
        configs.mkdir()
        demo = yaml.safe_load((ROOT / "model_configs" / "demo.yaml").read_text())
        demo["plait"] |= {"replicas": replicas, "source": {"folder": str(ROOT / "models" / "demo")}}
        (configs / "demo.yaml").write_text(yaml.safe_dump(demo))
        (folder / "providers").mkdir()
        for name, given in providers.items():
            (folder / "providers" / f"{name}.yaml").write_text(yaml.safe_dump(given))
        super().__init__(
            folder,
            configs,
            "demo",
            provider_configs=str(folder / "providers"),
            heartbeat_s="0.5",
            lease_ttl_s="3",
            reconcile_s="0.5",
        )

    def up(self, count: int) -> list[Any]:
        """So many containers, each with a ready replica."""

        def look() -> list[Any] | None:
            there = self.get("/v1/containers")["containers"]
            nodes = self.get("/v1/nodes")["nodes"]
            ready = {
                n["runner_id"]
                for n in nodes
                if n["connected"] and any(r["state"] == "ready" for r in n["replicas"])
            }
            are_up = [c for c in there if c["state"] == "up" and c["runner"] in ready]
            return are_up if len(are_up) == count == len(there) else None

        return wait_for(f"{count} containers", look, 40.0)

    def note(self, provider: str = "here") -> Any:
        """What was noted of a provider."""
        listed = {each["name"]: each for each in self.get("/v1/providers")["providers"]}
        return listed[provider]["ledger"][0]

    def pid(self, container: Any) -> int:
        path = self.state / "containers" / container["provider"] / container["container"] / "pid"
        return int(path.read_text())


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Control]:
    control = Control(tmp_path, 2, here=PROVIDER)
    control.start()
    yield control
    control.stop()


def test_a_container_that_is_killed_is_noted_and_replaced_and_its_work_goes_on(
    control: Control,
) -> None:
    first, _ = control.up(2)
    tasks = [control.submit("demo", prompt="x", max_new_tokens=200) for _ in range(4)]

    def runners() -> set[str | None]:
        return {control.get(f"/v1/tasks/{task}")["runner"] for task in tasks}

    wait_for("work in both containers", lambda: len(runners() - {None}) == 2)

    os.kill(control.pid(first), signal.SIGKILL)

    wait_for("a noted loss", lambda: control.note()["losses"] > 0.9)
    again = control.up(2)
    assert first["key"] not in {container["key"] for container in again}
    ended = [control.wait(task) for task in tasks]
    assert {task["state"] for task in ended} == {"succeeded"}
    assert {task["num_tokens"] for task in ended} == {200}
    assert sum(task["num_lost"] for task in ended) > 0


def test_where_one_provider_refuses_another_is_asked(tmp_path: Path) -> None:
    broken = {**PROVIDER, "price_per_hour": 0.0, "settings": {"command": ["/nowhere/plait"]}}
    control = Control(tmp_path, 1, broken=broken, here=PROVIDER)
    control.start()
    try:
        refused = wait_for("a refusal", lambda: _paused(control), 20.0)
        [container] = wait_for(
            "another's container",
            lambda: [c for c in control.get("/v1/containers")["containers"] if c["runner"]],
            30.0,
        )
    finally:
        control.stop()

    assert "cannot run /nowhere/plait" in refused["reason"]
    assert container["provider"] == "here"


def _paused(control: Control) -> Any:
    listed = control.get("/v1/providers")["providers"]
    return next((each for each in listed if each["state"] == "paused"), None)
