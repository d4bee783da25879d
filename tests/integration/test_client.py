"""The client library against a gateway that goes away and comes back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from scheduler.client import ApiError, Chunk, Client, State, TaskUnsuccessful, Unreachable
from tests.integration.gateway_system import NUM_WORDS_HELD
from tests.integration.threaded_gateway import Threaded


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Threaded]:
    running = Threaded(tmp_path / "plait.db")
    yield running
    running.close()


@pytest.fixture
def client(gateway: Threaded) -> Iterator[Client]:
    with Client(gateway.system.url, gateway.system.grpc_target, patience_s=10) as opened:
        yield opened


def test_a_generation_is_read_as_it_comes(client: Client) -> None:
    assert list(client.generate("x", max_new_tokens=3)) == ["w0 ", "w1 ", "w2 "]


def test_a_refused_generation_says_status_and_field(client: Client) -> None:
    with pytest.raises(ApiError) as caught:
        client.generate("x", max_new_tokens=0)

    assert (caught.value.status, caught.value.field) == (422, "max_new_tokens")


def test_a_generation_the_model_refuses_says_why(client: Client) -> None:
    with pytest.raises(TaskUnsuccessful) as caught:
        list(client.generate("fail"))

    assert (caught.value.status, caught.value.field) == (422, "prompt")
    assert "not to the model's liking" in caught.value.message


def test_a_generation_that_is_closed_early_is_taken_back(client: Client, gateway: Threaded) -> None:
    text = client.generate("hold", max_new_tokens=9)
    next(text)

    text.close()

    assert [task["state"] for task in client.tasks()["tasks"]] == ["cancelled"]


def test_a_watch_goes_on_over_a_restart_without_gap_or_repeat(
    client: Client, gateway: Threaded
) -> None:
    task_id = client.submit("demo", {"prompt": "hold", "max_new_tokens": 6})["task_id"]
    events = client.watch(task_id)
    seen = [next(e for e in events if isinstance(e, Chunk)) for _ in range(NUM_WORDS_HELD)]

    gateway.restart()
    gateway.go_on()
    rest = list(events)

    seen += [event for event in rest if isinstance(event, Chunk)]
    assert [(chunk.cursor, chunk.text) for chunk in seen] == [(i + 1, f"w{i} ") for i in range(6)]
    assert isinstance(rest[-1], State)
    assert rest[-1].task["state"] == "succeeded"


def test_a_watch_waits_for_a_gateway_that_is_away(client: Client, gateway: Threaded) -> None:
    task_id = client.submit("demo", {"prompt": "hold", "max_new_tokens": 5})["task_id"]
    gateway.call(gateway.system.wait_for_words(task_id, NUM_WORDS_HELD))
    gateway.call(gateway.system.close())
    back = threading.Timer(0.5, lambda: (gateway.call(gateway.system.open()), gateway.go_on()))
    back.start()

    text = list(client.stream(task_id))

    back.join()
    assert text == [f"w{i} " for i in range(5)]


def test_a_submit_waits_for_a_gateway_that_is_away(client: Client, gateway: Threaded) -> None:
    gateway.call(gateway.system.close())
    back = threading.Timer(0.5, lambda: gateway.call(gateway.system.open()))
    back.start()

    text = list(client.generate("x", max_new_tokens=2))

    back.join()
    assert text == ["w0 ", "w1 "]
    assert len(client.tasks()["tasks"]) == 1


def test_patience_ends(free_port: int) -> None:
    address = f"127.0.0.1:{free_port}"
    with Client(f"http://{address}", address, patience_s=0.3) as client:
        with pytest.raises(Unreachable, match="nobody answers"):
            client.models()
        with pytest.raises(Unreachable, match="nobody answers"):
            next(client.watch("some-task"))


def test_a_watch_of_no_task_is_refused_at_once(client: Client) -> None:
    with pytest.raises(ApiError) as caught:
        next(client.watch("nothing"))

    assert (caught.value.status, caught.value.type) == (404, "TaskNotFound")


def test_a_model_that_is_scaled_to_nothing_is_not_waited_for(client: Client) -> None:
    with pytest.raises(ApiError) as caught:
        client.submit("asleep", {"prompt": "x"})

    assert (caught.value.status, caught.value.type) == (503, "NoReplicas")


def test_a_repeated_submit_is_one_task(client: Client) -> None:
    twice = [client.submit("demo", {"prompt": "x"}, idempotency_key="k") for _ in range(2)]

    assert twice[0]["task_id"] == twice[1]["task_id"]


def test_a_task_tells_its_story(client: Client) -> None:
    task_id = client.submit("demo", {"prompt": "x", "max_new_tokens": 2}, priority=4)["task_id"]
    list(client.stream(task_id))

    task = client.task(task_id)

    assert (task["state"], task["priority"]) == ("succeeded", 4)
    assert task["output"]["token_ids"] == [0, 1]
    assert task["attempts"][0]["outcome"] == "succeeded"


def test_a_cancelled_task_says_so(client: Client) -> None:
    task_id = client.submit("demo", {"prompt": "hold", "max_new_tokens": 9})["task_id"]

    assert client.cancel(task_id)["state"] == "cancelled"
    with pytest.raises(TaskUnsuccessful) as caught:
        list(client.stream(task_id))
    assert caught.value.type == "cancelled"


def test_the_cluster_is_shown_and_set(client: Client) -> None:
    assert client.is_ready()
    names = [model["name"] for model in client.models()["models"]]
    assert names == ["demo", "encoder", "labeller", "asleep", "elastic"]
    assert client.nodes()["nodes"][0]["node"] == "here"
    assert client.scale("demo", 2)["desired_replicas"] == 2
    assert client.explain_scale("demo")["decided_by"] == "operator"
    assert client.scale_by_work("demo")["desired_replicas"] == 1
    assert client.set_weight("gold", 2.5) == client.weight("gold") == 2.5
    assert client.tenants()["tenants"][0]["tenant"] == "gold"


def test_odd_names_stay_inside_their_part_of_the_path(client: Client) -> None:
    with pytest.raises(ApiError) as caught:
        client.task("../models?x=1#y")

    assert caught.value.type == "TaskNotFound"
