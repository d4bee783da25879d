"""How containers and providers are shown to a person."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from scheduler import tables


def shown(table: Table) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_containers_are_listed_with_those_that_nobody_ordered() -> None:
    container = {
        "provider": "salad",
        "key": "salad-0-3",
        "state": "up",
        "reason": "",
        "container": "c1",
        "ordered_at": 1.0,
        "up_at": None,
        "stalled_at": 2.0,
        "provider_state": "running",
        "provider_reason": "",
        "runner": None,
    }
    unknown = {"provider": "salad", "container": "c2"}

    text = shown(tables.container_table({"containers": [container], "unknown": [unknown]}))

    assert "stalled" in text
    assert "c2" in text


def test_providers_and_what_a_model_is_short_of_are_listed() -> None:
    note = {"node_class": "", "losses": 1.0, "stalls": 0.0, "slow_starts": 0.0, "hours": 3.0}
    provider = {
        "name": "salad",
        "kind": "salad",
        "state": "paused",
        "reason": "HTTP 500",
        "price_per_hour": 0.18,
        "device_kind": "RTX",
        "num_devices": 1,
        "max_containers": 8,
        "models": None,
        "num_ordered": 2,
        "num_up": 1,
        "ledger": [{**note, "losses_per_hour": 0.2625}],
    }
    listing = {"providers": [provider], "shortages": {"demo": "salad: paused"}}

    assert "HTTP 500" in shown(tables.provider_table(listing))
    assert "salad: paused" in shown(tables.provider_table(listing))
    assert "0.263" in shown(tables.ledger_table(listing))
