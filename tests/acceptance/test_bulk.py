"""A bulk as a person runs it, and somebody beside it who does not wait for its length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import Reference
from tests.acceptance.system import System
from tests.waiting import wait_for

pytestmark = [pytest.mark.torchserve, pytest.mark.timeout(300)]

#: Six times what the replica's 16 slots hold at once.
NUM_INPUTS, NUM_TOKENS = 96, 32


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_bulk_is_run_while_somebody_beside_it_is_answered(
    system: System, reference: Reference, tmp_path: Path
) -> None:
    prompts = [f"x{n} = {n}\n" for n in range(NUM_INPUTS)]
    inputs, output = tmp_path / "inputs.jsonl", tmp_path / "results.jsonl"
    documents = [{"prompt": p, "max_new_tokens": NUM_TOKENS, "ignore_eos": True} for p in prompts]
    inputs.write_text("".join(json.dumps(document) + "\n" for document in documents))

    command = ("bulk", "run", str(inputs), "-o", str(output), "--name", "nightly")
    with system.plait(*command) as running:
        bulk = wait_for("the first outcomes", lambda: begun(system, "nightly"))
        asked = {"prompt": "def f():", "max_new_tokens": 8, "class": "interactive"}
        answer = system.post("/predictions/demo", asked, "chat")
        beside = system.get(f"/v1/bulks/{bulk}")
        partial = lines(system.run("bulk", "results", bulk, "--partial"))
        _, errors = running.communicate(timeout=120)
    outcomes = lines(output.read_text())

    assert answer.status_code == 200
    assert answer.json()["text"] == reference.text("def f():", 8)
    assert 0 < beside["num_ended"] < NUM_INPUTS
    assert running.returncode == 0, errors
    assert [outcome["index"] for outcome in outcomes] == list(range(NUM_INPUTS))
    assert partial
    assert [each for each in outcomes if each["index"] in {p["index"] for p in partial}] == partial
    for index in (0, NUM_INPUTS // 2, NUM_INPUTS - 1):
        tokens = reference.tokens(prompts[index], NUM_TOKENS, ignore_eos=True)
        assert outcomes[index]["result"]["token_ids"] == tokens
    assert f"{NUM_INPUTS} succeeded" in errors
    assert f"{NUM_INPUTS} of {NUM_INPUTS}" in system.run("bulk", "status", bulk)


def begun(system: System, name: str) -> str | None:
    """The bulk of the name once some of its inputs have ended."""
    for bulk in system.get("/v1/bulks")["bulks"]:
        if bulk["name"] == name and system.get(f"/v1/bulks/{bulk['bulk_id']}")["num_ended"]:
            return str(bulk["bulk_id"])
    return None
