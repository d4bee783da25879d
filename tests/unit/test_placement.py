from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from handlers.model_config import ModelConfig
from scheduler.autoscaler.placement import Plan, Trait, place
from scheduler.cluster_view import NodeView, Placed, ReplicaView
from scheduler.testing.models import config

GPU = config(device_type="gpu")


def replica(name: str = "demo__r0", **changes: Any) -> ReplicaView:
    values: dict[str, Any] = {"model": "demo", "state": "ready", "capacity": 4, "in_flight": 0}
    return ReplicaView(name, **{**values, **changes})


def node(
    runner: str = "one", *replicas: ReplicaView, num_devices: int = 0, connected: bool = True
) -> NodeView:
    return NodeView(f"node of {runner}", runner, connected, num_devices, replicas)


def plan(
    count: int,
    *nodes: NodeView,
    model: ModelConfig | None = None,
    previous: Mapping[str, Sequence[Placed]] | None = None,
) -> Plan:
    model = model or config()
    return place({model.name: count}, {model.name: model}, nodes, previous)


def names(plan: Plan, runner: str = "one") -> list[str]:
    return [placed.name for placed in plan.replicas[runner]]


def test_nothing_can_be_placed_without_a_runner() -> None:
    assert plan(1).shortages == {"demo": "no runner is connected"}


def test_an_empty_node_gets_the_first_replica() -> None:
    assert names(plan(1, node())) == ["demo__r0"]


def test_a_cpu_replica_gets_no_devices() -> None:
    assert plan(1, node(num_devices=4)).replicas["one"] == (Placed("demo__r0", "demo"),)


def test_what_runs_stays_where_it_is() -> None:
    found = plan(1, node("one"), node("two", replica("demo__r3")))

    assert (names(found, "one"), names(found, "two")) == ([], ["demo__r3"])


def test_a_further_replica_gets_the_lowest_index_nobody_uses() -> None:
    found = plan(3, node("one", replica("demo__r0"), replica("demo__r2")))

    assert names(found) == ["demo__r0", "demo__r1", "demo__r2"]


def test_indices_are_unique_over_nodes() -> None:
    found = plan(2, node("one", replica("demo__r0")), node("two"))

    assert names(found, "two") == ["demo__r1"]


def test_replicas_spread_over_nodes() -> None:
    found = plan(4, node("one"), node("two"))

    assert [len(names(found, runner)) for runner in ("one", "two")] == [2, 2]


def test_of_too_many_the_one_that_is_not_ready_goes_first() -> None:
    found = plan(1, node("one", replica("demo__r0", state="starting"), replica("demo__r1")))

    assert names(found) == ["demo__r1"]


def test_of_too_many_the_one_with_least_in_flight_goes_next() -> None:
    found = plan(1, node("one", replica("demo__r0"), replica("demo__r1", in_flight=2)))

    assert names(found) == ["demo__r1"]


def test_of_equals_the_highest_index_goes() -> None:
    there = [replica(f"demo__r{n}") for n in (10, 2, 9)]

    assert names(plan(2, node("one", *there))) == ["demo__r2", "demo__r9"]


def test_a_model_that_is_not_to_run_loses_every_replica() -> None:
    assert names(plan(0, node("one", replica(in_flight=3)))) == []


def test_a_replica_of_an_unknown_model_goes() -> None:
    assert names(plan(1, node("one", replica("old__r0", model="old")))) == ["demo__r0"]


def test_each_gpu_replica_gets_devices_of_its_own() -> None:
    found = plan(2, node(num_devices=4), model=GPU)

    assert [placed.device_ids for placed in found.replicas["one"]] == [(0, 1), (2, 3)]


def test_a_replica_on_its_way_out_holds_its_devices() -> None:
    leaving = replica("old__r0", model="old", state="draining", device_ids=(0, 1))

    found = plan(1, node("one", leaving, num_devices=4), model=GPU)

    assert found.replicas["one"] == (Placed("demo__r0", "demo", (2, 3)),)


def test_too_few_free_devices_are_a_shortage() -> None:
    found = plan(2, node(num_devices=3), model=GPU)

    assert names(found) == ["demo__r0"]
    assert found.shortages == {
        "demo": "a replica needs 2 devices of one node; the most that are free is 1"
    }


def test_a_replica_does_not_span_nodes() -> None:
    found = plan(1, node("one", num_devices=1), node("two", num_devices=1), model=GPU)

    assert found.shortages.keys() == {"demo"}


def test_only_the_devices_of_the_config_are_used() -> None:
    model = config(device_type="gpu", device_ids=(2, 3, 9))

    found = plan(2, node(num_devices=4), model=model)

    assert [placed.device_ids for placed in found.replicas["one"]] == [(2, 3)]


def test_a_running_gpu_replica_keeps_its_devices() -> None:
    found = plan(1, node("one", replica(device_ids=(2, 3)), num_devices=4), model=GPU)

    assert found.replicas["one"] == (Placed("demo__r0", "demo", (2, 3)),)


def test_a_gpu_replica_with_the_wrong_number_of_devices_is_replaced() -> None:
    found = plan(1, node("one", replica(device_ids=(0,)), num_devices=4), model=GPU)

    assert found.replicas["one"] == (Placed("demo__r1", "demo", (1, 2)),)


def test_a_replica_that_is_planned_and_not_shown_yet_is_not_planned_again() -> None:
    previous = {"one": [Placed("demo__r0", "demo", (2, 3))]}

    found = plan(1, node("one", num_devices=4), model=GPU, previous=previous)

    assert found.replicas["one"] == (Placed("demo__r0", "demo", (2, 3)),)


def test_the_same_plan_comes_out_of_what_it_led_to() -> None:
    first = plan(3, node("one", num_devices=4), node("two", num_devices=4), model=GPU)
    after = [
        node(
            runner,
            *(replica(r.name, state="starting", device_ids=r.device_ids) for r in placed),
            num_devices=4,
        )
        for runner, placed in first.replicas.items()
    ]

    assert plan(3, *after, model=GPU, previous=first.replicas) == first


def test_the_replicas_of_a_runner_that_is_away_are_not_replaced() -> None:
    found = plan(1, node("one"), node("two", replica(), connected=False))

    assert names(found, "one") == []


def test_a_runner_that_is_away_gets_nothing_new() -> None:
    found = plan(1, node("one", connected=False))

    assert names(found) == []
    assert found.shortages == {"demo": "no runner is connected"}


def test_a_replica_that_was_let_go_is_not_taken_back_in_place_of_one_that_stays() -> None:
    nodes = [node("one", replica("demo__r0"), replica("demo__r1", state="starting"))]

    plan = place({"demo": 1}, {"demo": config()}, nodes, {"one": [Placed("demo__r1", "demo")]})

    assert [placed.name for placed in plan.replicas["one"]] == ["demo__r1"]


def test_how_many_are_missing_is_told() -> None:
    assert plan(3).missing == {"demo": 3}
    assert plan(2, node()).missing == {}


def with_traits(count: int, *nodes: NodeView, **traits: Trait) -> Plan:
    return place({"demo": count}, {"demo": config()}, nodes, None, traits)


def test_a_container_takes_no_more_than_it_may() -> None:
    found = with_traits(2, node(), one=Trait(most_replicas=1))

    assert names(found) == ["demo__r0"]
    assert (found.missing, list(found.shortages)) == ({"demo": 1}, ["demo"])


def test_what_is_in_a_container_that_is_to_go_is_placed_elsewhere() -> None:
    leaving = node("one", replica("demo__r0"))

    found = with_traits(1, leaving, node("two"), one=Trait(is_leaving=True))

    assert (names(found, "one"), names(found, "two")) == ([], ["demo__r1"])


def test_of_two_places_the_cheaper_one_is_taken_and_the_dearer_one_given_up() -> None:
    ranks = {"one": Trait(rank=2.0), "two": Trait(rank=1.0)}
    both = (node("one", replica("demo__r0")), node("two", replica("demo__r1")))

    assert names(with_traits(1, node("one"), node("two"), **ranks), "two") == ["demo__r0"]
    assert names(with_traits(1, *both, **ranks), "two") == ["demo__r1"]


def test_a_container_runs_only_models_that_it_may() -> None:
    assert with_traits(1, node(), one=Trait(models=("other",))).missing == {"demo": 1}
