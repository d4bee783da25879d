"""The command line: help that reads well, errors that say what to do."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from scheduler import tables
from scheduler.cli import app, main

COMMANDS = [
    "up", "control", "runner", "node", "archive",
    "generate", "submit", "status", "watch", "cancel",
    "models", "workers", "scale", "weight",
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})

    assert result.exit_code == 0
    assert f"Usage: plait {command}" in result.output


def test_a_wrong_option_is_named_and_exits_with_2() -> None:
    result = CliRunner().invoke(app, ["generate", "x", "--temperatur", "1"])

    assert result.exit_code == 2
    assert "--temperatur" in result.output


def test_an_unknown_setting_ends_with_one_line_and_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PLAIT_HTPP_PORT", "1")
    monkeypatch.setattr("sys.argv", ["plait", "up"])

    with pytest.raises(SystemExit) as caught:
        main()

    assert caught.value.code == 1
    assert "PLAIT_HTPP_PORT" in capsys.readouterr().err


def test_a_story_tells_every_attempt_and_why_it_ended() -> None:
    attempt = {
        "number": 1, "replica": "demo__r0", "runner": "n1", "started_at": 0.0,
        "outcome": "lost", "reason": "its worker died",
    }  # fmt: skip
    task = {
        "task_id": "T1", "state": "queued", "model": "demo", "tenant": "t", "accepted_at": 0.0,
        "num_tokens": 7, "charged_cost": 14, "estimated_cost": 99, "error": None,
        "attempts": [attempt],
    }  # fmt: skip

    story = tables.task_story(task)

    assert "attempt 1 on demo__r0 of n1" in story
    assert "lost, its worker died" in story
