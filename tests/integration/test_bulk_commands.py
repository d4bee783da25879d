"""Bulks by the client library and as a person types them, also over what breaks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from scheduler.cli import app
from scheduler.client import ApiError, Client, InputRefused, bulks
from scheduler.operations import TenantChange
from tests.integration.gateway_system import NUM_WORDS_HELD
from tests.integration.threaded_gateway import Threaded
from tests.waiting import until

Plait = Callable[..., Result]


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Threaded]:
    running = Threaded(tmp_path / "plait.db")
    yield running
    running.close()


@pytest.fixture
def client(gateway: Threaded) -> Iterator[Client]:
    with Client(gateway.system.url, gateway.system.grpc_target, patience_s=10) as opened:
        yield opened


@pytest.fixture
def plait(gateway: Threaded) -> Plait:
    def run(*words: object) -> Result:
        command = [*map(str, words), "--address", gateway.system.url]
        return CliRunner().invoke(app, command, env={"COLUMNS": "250"})

    return run


def generations(count: int, word: str = "p") -> list[dict[str, Any]]:
    return [{"prompt": f"{word}{n}", "max_new_tokens": 1} for n in range(count)]


def write(path: Path, inputs: list[Any]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in inputs))
    return path


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# -- the client


def test_inputs_go_up_in_pieces_and_outcomes_come_down_in_order(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulks, "PIECE_INPUTS", 20)
    accepted: list[int] = []

    bulk = client.submit_bulk("demo", iter(generations(50)), on_accepted=accepted.append)
    outcomes = list(client.bulk_results(bulk["bulk_id"], 10))

    assert accepted == [0, 20, 40, 50]
    assert (bulk["state"], bulk["num_inputs"]) == ("closed", 50)
    assert [outcome["index"] for outcome in outcomes] == list(range(10, 50))
    assert outcomes[0]["result"]["text"] == "w0 "
    told = client.bulk(bulk["bulk_id"])
    assert (told["num_ended"], told["counts"]) == (50, {"succeeded": 50})


def test_a_bulk_without_inputs_is_done_at_once(client: Client) -> None:
    bulk = client.submit_bulk("demo", [])

    assert (bulk["state"], bulk["num_inputs"]) == ("closed", 0)
    assert list(client.bulk_results(bulk["bulk_id"])) == []


def test_an_upload_goes_on_where_another_ended(
    client: Client, gateway: Threaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulks, "PIECE_INPUTS", 10)

    def broken() -> Iterator[dict[str, Any]]:
        yield from generations(25)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.submit_bulk("demo", broken(), idempotency_key="k")
    accepted: list[int] = []
    client.submit_bulk("demo", generations(30), idempotency_key="k", on_accepted=accepted.append)

    assert accepted == [20, 29, 30]
    assert len(gateway.call(gateway.system.book.tasks())) == 30


def test_an_upload_goes_on_over_a_restart(
    client: Client, gateway: Threaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulks, "PIECE_INPUTS", 10)

    def restarted() -> Iterator[dict[str, Any]]:
        for number, each in enumerate(generations(30)):
            if number == 15:
                gateway.restart()
            yield each

    bulk = client.submit_bulk("demo", restarted())

    assert (bulk["state"], bulk["num_inputs"]) == ("closed", 30)
    assert len(gateway.call(gateway.system.book.tasks())) == 30


def test_a_reader_goes_on_over_a_restart(client: Client, gateway: Threaded) -> None:
    held = [{"prompt": f"hold {n}", "max_new_tokens": 5} for n in range(3)]
    bulk = client.submit_bulk("demo", [*generations(1), *held])
    outcomes = client.bulk_results(bulk["bulk_id"])
    first = next(outcomes)
    for task in gateway.call(gateway.system.book.tasks(limit=3)):
        gateway.call(gateway.system.wait_for_words(task.id, NUM_WORDS_HELD))

    gateway.restart()
    gateway.go_on()

    assert [first["index"], *(outcome["index"] for outcome in outcomes)] == [0, 1, 2, 3]


def test_a_refused_input_has_its_place(client: Client) -> None:
    inputs = [*generations(7), {"prompt": "x", "max_new_tokens": 0}, *generations(3)]

    with pytest.raises(InputRefused, match="input 7: max_new_tokens: is 0") as caught:
        client.submit_bulk("demo", inputs, idempotency_key="k")

    assert (caught.value.index, caught.value.field) == (7, "max_new_tokens")
    inputs[7] = {"prompt": "x", "max_new_tokens": 1}
    assert client.submit_bulk("demo", inputs, idempotency_key="k")["num_inputs"] == 11


def test_a_quota_is_waited_for(
    client: Client, gateway: Threaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    change = TenantChange(max_in_flight=1, max_queued=5)
    gateway.call(gateway.system.operations.set_tenant("default", change))

    def pause(self: object, problem: str = "", at_least_s: float = 0.0) -> bool:
        waited.append(at_least_s)
        none = TenantChange(max_queued=None)
        gateway.call(gateway.system.operations.set_tenant("default", none))
        return True

    monkeypatch.setattr(bulks.Patience, "pause", pause)
    bulk = client.submit_bulk("demo", generations(20))

    assert bulk["num_inputs"] == 20
    assert len(waited) == 1
    assert waited[0] > 0


def test_a_bulk_is_taken_back_and_listed(client: Client) -> None:
    held = [{"prompt": "hold", "max_new_tokens": 5}] * 3
    bulk = client.submit_bulk("demo", held, name="nightly")

    told = client.cancel_bulk(bulk["bulk_id"])

    assert (told["state"], told["counts"]) == ("cancelled", {"cancelled": 3})
    assert [each["name"] for each in client.bulks()["bulks"]] == ["nightly"]


def test_results_of_no_bulk_are_refused(client: Client) -> None:
    with pytest.raises(ApiError, match="there is no bulk"):
        list(client.bulk_results("nobody"))


# -- the commands


def test_a_file_of_inputs_becomes_a_file_of_results(plait: Plait, tmp_path: Path) -> None:
    inputs, output = write(tmp_path / "in.jsonl", generations(30)), tmp_path / "out.jsonl"

    result = plait("bulk", "run", inputs, "-o", output)

    assert result.exit_code == 0, result.output
    assert "30 succeeded" in result.stderr
    assert [outcome["index"] for outcome in read(output)] == list(range(30))


def test_the_same_command_goes_on_where_the_last_was_cut_off(
    plait: Plait, gateway: Threaded, tmp_path: Path
) -> None:
    inputs, output = write(tmp_path / "in.jsonl", generations(30)), tmp_path / "out.jsonl"
    plait("bulk", "run", inputs, "-o", output)
    whole = output.read_bytes()
    output.write_bytes(whole[: len(whole) // 2])

    result = plait("bulk", "run", inputs, "-o", output)

    assert result.exit_code == 0, result.output
    assert output.read_bytes() == whole
    assert len(gateway.call(gateway.system.book.tasks())) == 30


def test_a_wrong_line_is_named_and_the_rest_is_run_once_it_is_right(
    plait: Plait, tmp_path: Path
) -> None:
    inputs, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    inputs.write_text('{"prompt": "a"}\n\n{"prompt": "b", "max_new_tokens": 0}\n{"prompt": "c"}\n')

    refused = plait("bulk", "run", inputs, "-o", output)
    inputs.write_text('{"prompt": "a"}\n\n{"prompt": "b", "max_new_tokens": 1}\n{"prompt": "c"}\n')
    result = plait("bulk", "run", inputs, "-o", output)

    assert refused.exit_code == 1
    assert "line 3: input 1: max_new_tokens" in " ".join(refused.stderr.split())
    assert result.exit_code == 0, result.output
    assert len(read(output)) == 3


def test_failures_are_counted_and_are_the_exit_code(plait: Plait, tmp_path: Path) -> None:
    inputs = write(tmp_path / "in.jsonl", [*generations(2), {"prompt": "fail"}])

    result = plait("bulk", "run", inputs, "-o", tmp_path / "out.jsonl")

    assert result.exit_code == 1
    assert "1 failed, 2 succeeded" in result.stderr


@pytest.mark.parametrize(
    "there", ["{}\n", "hello\n", '{"index": 0, "state": "succeeded", "task_id": "x"}\n']
)
def test_a_file_of_something_else_is_not_written_into(
    plait: Plait, tmp_path: Path, there: str
) -> None:
    output = tmp_path / "out.jsonl"
    output.write_text(there)

    result = plait("bulk", "run", write(tmp_path / "in.jsonl", generations(2)), "-o", output)

    assert result.exit_code == 1
    assert "out.jsonl holds" in " ".join(result.stderr.split())
    assert output.read_text() == there


def test_progress_results_and_taking_back_have_commands(
    plait: Plait, client: Client, gateway: Threaded, tmp_path: Path
) -> None:
    held = {"prompt": "hold", "max_new_tokens": 5}
    bulk_id = client.submit_bulk("demo", [*generations(2), held], name="nightly")["bulk_id"]
    gateway.call(_until_ended(gateway, bulk_id, 2))

    assert "nightly" in plait("bulk", "status").stdout
    assert (
        "2 of 3 inputs have ended: 1 leased, 2 succeeded" in plait("bulk", "status", bulk_id).stdout
    )
    printed = plait("bulk", "results", bulk_id, "--partial").stdout.splitlines()
    assert [json.loads(line)["index"] for line in printed] == [0, 1]
    assert "cancelled" in plait("bulk", "cancel", bulk_id).stdout
    output = tmp_path / "all.jsonl"
    assert plait("bulk", "results", bulk_id, "-o", output, "--from", 1).exit_code == 0
    assert [outcome["state"] for outcome in read(output)] == ["succeeded", "cancelled"]
    again = plait("bulk", "status", bulk_id, "--json").stdout
    assert json.loads(again)["state"] == "cancelled"


async def _until_ended(gateway: Threaded, bulk_id: str, count: int) -> None:
    await until(
        lambda: gateway.system.front.bulks.progress(bulk_id), lambda told: told.num_ended >= count
    )
