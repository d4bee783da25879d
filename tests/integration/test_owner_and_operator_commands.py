"""The commands of owners and operators against a gateway, as a person types them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from scheduler.cli import app
from scheduler.client import ApiError, Client
from scheduler.operations import TenantChange
from tests.integration.gateway_system import NUM_WORDS_HELD
from tests.integration.threaded_gateway import Threaded

Plait = Callable[..., Result]


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Threaded]:
    running = Threaded(tmp_path / "plait.db")
    yield running
    running.close()


@pytest.fixture
def plait(gateway: Threaded) -> Plait:
    """Runs a command line against the gateway."""

    def run(*words: str, key: str = "") -> Result:
        environment = {"COLUMNS": "250", "PLAIT_API_KEY": key}
        command = [*words, "--address", gateway.system.url]
        return CliRunner().invoke(app, command, env=environment)

    return run


def printed(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def held(gateway: Threaded, plait: Plait) -> str:
    """A task in the middle of its answer."""
    task_id = printed(plait("submit", "hold on", "--max-new-tokens", "6", "--class", "batch"))
    gateway.call(gateway.system.wait_for_words(task_id, NUM_WORDS_HELD))
    return task_id


def test_an_owner_pauses_and_resumes(gateway: Threaded, plait: Plait) -> None:
    task_id = held(gateway, plait)

    assert printed(plait("pause", task_id)) == "paused"
    assert task_id in printed(plait("status", "--state", "paused"))
    gateway.go_on()
    assert printed(plait("resume", task_id)) == "queued"
    assert json.loads(printed(plait("status", task_id, "--json")))["class"] == "batch"


def test_a_dead_letter_is_listed_with_its_reason_and_requeued(tmp_path: Path) -> None:
    gateway = Threaded(tmp_path / "plait.db")
    gateway.system.max_attempts = 1
    gateway.restart()

    def plait(*words: str) -> Result:
        command = [*words, "--address", gateway.system.url]
        return CliRunner().invoke(app, command, env={"COLUMNS": "250"})

    try:
        task_id = held(gateway, plait)
        gateway.call(gateway.system.book.release(task_id, 1, "its worker died"))
        assert "its worker died" in printed(plait("dead"))
        assert task_id not in printed(plait("dead", "--tenant", "other"))
        assert task_id in printed(plait("dead", "--all", "--tenant", "other"))
        assert printed(plait("requeue", task_id)) == f"{task_id}  queued"
        assert task_id not in printed(plait("dead"))
    finally:
        gateway.close()


def test_a_move_that_is_not_allowed_is_told_and_exits_with_1(
    gateway: Threaded, plait: Plait
) -> None:
    task_id = held(gateway, plait)

    result = plait("requeue", task_id, "--tenant", "other")

    assert result.exit_code == 1
    assert f"there is no task '{task_id}'" in result.stderr


def test_quotas_are_set_shown_and_removed(plait: Plait) -> None:
    printed(plait("tenants", "set", "red", "--max-queued", "9", "--classes", "batch,standard"))

    told = json.loads(printed(plait("tenants", "show", "red", "--json")))
    assert (told["max_queued"], told["classes"]) == (9, ["batch", "standard"])
    assert "0/9" in printed(plait("tenants", "list"))
    printed(plait("tenants", "set", "red", "--max-queued", "none", "--classes", "all"))
    told = json.loads(printed(plait("tenants", "show", "red", "--json")))
    assert (told["max_queued"], told["classes"]) == (None, None)


def test_a_limit_that_is_no_number_is_refused(plait: Plait) -> None:
    result = plait("tenants", "set", "red", "--max-queued", "many")

    assert result.exit_code == 1
    assert "max_queued: 'many' is no number" in result.stderr


def test_a_key_is_made_used_rotated_and_revoked(gateway: Threaded, plait: Plait) -> None:
    key = printed(plait("keys", "create", "red", "--name", "ci"))
    (listed,) = json.loads(printed(plait("keys", "list", "--json")))["keys"]

    task_id = printed(plait("submit", "x", key=key))
    successor = printed(plait("keys", "rotate", listed["key_id"]))
    refused = plait("status", key=key + "x")
    new_id = successor.split("_")[1]

    assert gateway.call(gateway.system.book.task(task_id)).tenant == "red"
    assert refused.exit_code == 1
    assert "this key is not valid" in refused.stderr
    assert key not in refused.output
    assert printed(plait("status", key=successor))
    assert printed(plait("keys", "revoke", new_id)) == f"{new_id} is revoked"
    table = printed(plait("keys", "list", "--tenant", "red"))
    assert successor not in table
    assert new_id in table


def test_classes_and_costs_are_listed_and_set(plait: Plait) -> None:
    assert printed(plait("classes", "set", "gold", "8")) == "gold: 8"
    assert "gold" in printed(plait("classes", "list"))
    assert printed(plait("costs", "set", "demo", "cpu", "2.5")) == "demo on cpu: 2.5"
    assert "2.5" in printed(plait("costs", "list"))


def test_a_purge_tells_how_many_went(gateway: Threaded, plait: Plait) -> None:
    task_id = held(gateway, plait)
    printed(plait("cancel", task_id))

    assert printed(plait("purge", "--older-than-s", "0")) == "1 tasks removed"
    assert plait("status", task_id).exit_code == 1


# -- the client library


def test_a_client_with_a_key_is_its_tenant_everywhere(gateway: Threaded) -> None:
    _, key = gateway.call(gateway.system.operations.create_key("red"))
    with Client(gateway.system.url, gateway.system.grpc_target, api_key=key) as client:
        text = "".join(client.generate("x", max_new_tokens=2, priority_class="batch"))
        (task,) = client.tasks()["tasks"]

    assert text == "w0 w1 "
    assert (task["tenant"], task["class"]) == ("red", "batch")


def test_a_client_waits_out_a_quota_as_long_as_it_is_told(
    gateway: Threaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scheduler.moves.intake.FULL_QUEUE_RETRY_S", 0.1)
    system, told = gateway.system, []
    set_tenant = system.operations.set_tenant
    gateway.call(set_tenant("red", TenantChange(max_in_flight=1, max_queued=1)))
    document = {"prompt": "hold on", "max_new_tokens": 6}

    def tell(words: str) -> None:
        told.append(words)
        gateway.call(set_tenant("red", TenantChange(max_queued=None)))

    with Client(system.url, system.grpc_target, tenant="red", patience_s=20, tell=tell) as client:
        running = client.submit("demo", document)["task_id"]
        gateway.call(system.wait_for_words(running, NUM_WORDS_HELD))
        client.submit("demo", document)

        last = client.submit("demo", document)

    assert last["state"] == "queued"
    (words,) = told
    assert "tenant red has 1 tasks queued and may have 1" in words


def test_a_client_does_not_wait_longer_than_it_is_patient(gateway: Threaded) -> None:
    system = gateway.system
    gateway.call(system.operations.set_tenant("red", TenantChange(cost_per_minute=20)))
    with Client(system.url, system.grpc_target, tenant="red", patience_s=1) as client:
        client.submit("demo", {"prompt": "x", "max_new_tokens": 8})
        with pytest.raises(ApiError) as caught:
            client.submit("demo", {"prompt": "x", "max_new_tokens": 8})

    assert (caught.value.status, caught.value.quota) == (429, "cost_per_minute")
    assert caught.value.retry_after_s is not None
    assert caught.value.retry_after_s > 1


def test_an_operator_fixes_the_replicas_and_gives_them_back(plait: Plait) -> None:
    assert "3 replicas desired" in printed(plait("scale", "demo", "3"))
    assert "demo: 3 replicas, by operator" in printed(plait("explain", "scale", "demo"))
    assert "1 replicas desired" in printed(plait("scale", "demo", "auto"))

    story = json.loads(printed(plait("explain", "scale", "elastic", "--json")))

    assert (story["decided_by"], story["rule"]["max"]) == ("work", 2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("scale", "demo", "-1"), "No such option"),
        (("scale", "demo", "many"), "a whole number from 0, or auto"),
        (("explain", "scale"), "name the model"),
    ],
)
def test_what_is_wrong_with_a_command_about_replicas_is_told(
    plait: Plait, words: tuple[str, ...], said: str
) -> None:
    result = plait(*words)

    assert result.exit_code != 0
    assert said in result.output


def test_what_nodes_have_of_models_files_is_listed(plait: Plait) -> None:
    (row,) = [line for line in printed(plait("downloads")).splitlines() if "encoder" in line]

    assert row.split()[:3] == ["here", "encoder", "fetching"]
