"""The command line: help that reads well, errors that say what to do."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from scheduler import cli, tables
from scheduler.cli import app, main

COMMANDS = [
    "up", "control", "runner", "node", "archive",
    "generate", "submit", "status", "watch", "cancel", "pause", "resume", "dead", "requeue",
    "models", "workers", "scale", "weight", "purge", "tenants", "keys", "classes", "costs",
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
        "resume": "close",
        "attempts": [attempt],
    }  # fmt: skip

    story = tables.task_story(task)

    assert "attempt 1 on demo__r0 of n1" in story
    assert "lost, its worker died" in story


def shown(engine: object) -> str:
    listing = {"nodes": [{"replicas": [{"name": "demo__r0", "engine": engine}]}]}
    console = Console(width=200, file=io.StringIO())
    console.print(tables.stage_table(listing))
    return console.file.getvalue()


def test_stages_are_shown_with_plan_measurement_and_faults() -> None:
    engine = {
        "epoch": 3, "num_faults": 2, "last_fault": "stage 1 died", "lanes": 2,
        "plan": {
            "cuts": [[0, 4], [4, 8]], "predicted_s": [0.01, 0.012], "predicted_bubble": 0.1,
            "measured_s": [0.011, 0.0125], "measured_bubble": 0.125,
        },
        "stages": [{"rank": 0, "state": "ready"}, {"rank": 1, "state": "loading"}],
        "kv": {"num_blocks": 64, "used": 12, "cached": 5},
    }  # fmt: skip

    table = shown(engine)

    for part in ("0:ready 1:loading", "0-3 4-7", "11.0+12.5 ms of 10.0+12.0 ms", "12% of 10%"):
        assert part in table
    assert "12/64, 5 cached" in table
    assert "2, stage 1 died" in table


@pytest.mark.parametrize(
    "engine", [{"x": 1}, {"plan": 3, "stages": 4, "kv": []}, {"plan": {"cuts": [1]}}]
)
def test_what_an_engine_tells_wrongly_breaks_no_table(engine: object) -> None:
    assert "demo__r0" in shown(engine)


def test_a_replica_that_tells_nothing_has_no_row() -> None:
    assert "demo__r0" not in shown(None)


def test_a_schema_is_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text('{"type": "object"}')

    document = cli._document("x", json_schema=f"@{tmp_path / 'schema.json'}", regex=None, n=1)

    assert document == {"prompt": "x", "json_schema": '{"type": "object"}', "n": 1}


def test_a_schema_that_is_not_there_is_named() -> None:
    result = CliRunner().invoke(app, ["generate", "x", "--json-schema", "@/nowhere"])

    assert result.exit_code == 1
    assert "cannot read /nowhere" in result.output
