"""Who sends what when: the workloads of VTC's evaluation, and some of ours."""

from __future__ import annotations

from tests.properties.fair_simulation import Burst, Scenario, Sender


def every(period: float, count: int, start: float = 0.0, times: int = 6) -> tuple[Burst, ...]:
    return tuple(Burst(start + number * period, count) for number in range(times))


#: The workloads of VTC's evaluation, with two more of ours.
WORKLOADS: dict[str, Scenario] = {
    "overload": Scenario(
        1, (Sender("a", bursts=(Burst(0, 60),)), Sender("b", bursts=(Burst(0, 30),)))
    ),
    "on and off": Scenario(
        2, (Sender("a", bursts=(Burst(0, 60),)), Sender("b", bursts=every(20, 5)))
    ),
    "bursts": Scenario(3, (Sender("a", bursts=every(25, 12)), Sender("b", bursts=every(10, 3, 5)))),
    "short against long": Scenario(
        4,
        (Sender("short", tokens=(1, 4), bursts=(Burst(0, 150),)), Sender("long", tokens=(60, 120))),
    ),
    "drifting rates": Scenario(
        5,
        (
            Sender("a", bursts=tuple(Burst(10.0 * n, 2 * n) for n in range(8))),
            Sender("b", bursts=tuple(Burst(10.0 * n, 16 - 2 * n) for n in range(8))),
        ),
    ),
    "a returning tenant": Scenario(
        6, (Sender("busy", bursts=(Burst(0, 100),)), Sender("returning", bursts=(Burst(60, 40),)))
    ),
    "unequal weights": Scenario(
        7,
        (
            Sender("gold", 3000, bursts=(Burst(0, 90),)),
            Sender("plain", bursts=(Burst(0, 40),)),
            Sender("tin", 333, bursts=(Burst(0, 20),)),
        ),
    ),
    "speeds of 1 and 4": Scenario(
        8, (Sender("a"), Sender("b", tokens=(1, 80)), Sender("c")), speeds=(5.0, 20.0)
    ),
    "classes of one tenant and of several": Scenario(
        9,
        (
            Sender("a", bursts=(Burst(0, 40, "interactive"), Burst(0, 20, "batch"))),
            Sender("b", bursts=(Burst(0, 40, "interactive"), Burst(5, 20, "standard"))),
            Sender("c", bursts=(Burst(0, 30, "batch"), Burst(20, 30, "interactive"))),
        ),
    ),
    "caps and quotas": Scenario(
        10,
        (
            Sender("capped", max_in_flight=1, changes=((60.0, 1000, None),)),
            Sender("a", bursts=(Burst(0, 60),)),
            Sender("small", max_in_flight=1, bursts=(Burst(0, 20), Burst(1, 5, "batch"))),
            Sender("few", max_queued=5, bursts=every(8, 10)),
        ),
        speeds=(10.0, 10.0, 10.0),
    ),
    "weights that change": Scenario(
        11,
        (
            Sender("a", changes=((20.0, 4000, None), (50.0, 500, None)), bursts=(Burst(0, 80),)),
            Sender("b", bursts=(Burst(0, 80),)),
        ),
    ),
    "a slot is kept for those who come": Scenario(
        12,
        (Sender("gold", 3000, bursts=(Burst(0, 120),)), Sender("plain", bursts=(Burst(0, 60),))),
        most_leased=1,
    ),
}
