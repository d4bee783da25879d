"""What holds for the number of replicas whatever the work does."""

from __future__ import annotations

import dataclasses
import math

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from handlers.scale_section import Scale
from scheduler.autoscaler.scaling import STALE_AFTER_S, Memory, Seen, Starting, decide
from scheduler.scaling import Action
from tests.properties.scaling_simulation import SPEED, Pool

RULE = Scale(max=12)
SETTLED_S = 1500.0
#: For runs of an hour of virtual time; how long one takes depends on the machine.
hours = settings(deadline=None, max_examples=30)

costs = st.floats(0, 1e6)
kinds = st.sampled_from(["fast", "slow", "unheard of"])


@st.composite
def sights(draw: st.DrawFn, now: float = 1000.0) -> Seen:
    num_queued = draw(st.integers(0, 500))
    num_running = draw(st.integers(0, 50))
    return Seen(
        now,
        draw(st.sampled_from([now, now, now, None, now - STALE_AFTER_S - 1])),
        num_queued=num_queued,
        queued_cost=draw(costs) if num_queued else 0.0,
        num_running=num_running,
        running_cost=draw(costs) if num_running else 0.0,
        arriving=draw(st.none() | st.floats(0, 1e4)),
        ready=tuple(draw(st.lists(kinds, max_size=12))),
        starting=tuple(draw(st.lists(st.builds(Starting, kinds, st.floats(0, 1e3)), max_size=6))),
        speeds=draw(st.dictionaries(kinds, st.floats(1, 1e4), max_size=2)),
        num_slots=draw(st.integers(1, 16)),
        start_s=draw(st.none() | st.floats(0.1, 600)),
        num_possible=draw(st.integers(0, 20)),
    )


@st.composite
def memories(draw: st.DrawFn, now: float = 1000.0) -> Memory:
    ages = draw(st.lists(st.floats(5, 400), max_size=10))
    needs = tuple((now - age, draw(st.floats(0, 20))) for age in sorted(ages, reverse=True))
    ago = st.none() | st.floats(0, 1000).map(lambda age: now - age)
    return Memory(draw(st.integers(0, 14)), needs, draw(ago), draw(ago), draw(ago))


rules = st.builds(
    Scale,
    max=st.integers(3, 12),
    min=st.integers(0, 3),
    target_wait_s=st.floats(0.5, 120),
    use_ratio=st.floats(0.3, 1),
    idle_s=st.floats(0, 600),
)


@given(rules, sights(), memories())
def test_what_is_decided_by_is_within_the_bounds(rule: Scale, seen: Seen, memory: Memory) -> None:
    decision, after = decide(rule, seen, memory)

    assume(decision.reason != "stale")
    assert rule.min <= decision.after <= rule.max
    assert after.num_desired == decision.after


@given(rules, sights(), memories())
def test_no_more_are_ordered_than_there_is_room_for(
    rule: Scale, seen: Seen, memory: Memory
) -> None:
    decision, _ = decide(rule, seen, memory)

    if decision.action is Action.UP and decision.reason != "bounds":
        assert decision.after <= max(seen.num_possible, rule.min, 1)


@given(rules, sights(), memories())
def test_without_a_look_at_the_load_nothing_changes(
    rule: Scale, seen: Seen, memory: Memory
) -> None:
    assume(seen.measured_at is None or seen.measured_at < seen.now)

    decision, after = decide(rule, seen, memory)

    assert (decision.action, decision.reason, after) == (Action.NOTHING, "stale", memory)


@given(rules, sights(), memories(), st.integers(1, 200), st.floats(1, 1e5))
def test_more_in_the_queue_never_means_fewer_replicas(
    rule: Scale, seen: Seen, memory: Memory, more: int, cost: float
) -> None:
    longer = dataclasses.replace(
        seen, num_queued=seen.num_queued + more, queued_cost=seen.queued_cost + cost
    )

    fewer, _ = decide(rule, seen, memory)
    greater, _ = decide(rule, longer, memory)

    assert greater.after >= fewer.after


@given(rules, sights(), memories())
def test_none_goes_while_work_waits_longer_than_is_aimed_at(
    rule: Scale, seen: Seen, memory: Memory
) -> None:
    decision, _ = decide(rule, seen, memory)

    if decision.action is Action.DOWN and decision.reason != "bounds":
        speed = sum(seen.speeds.get(kind, 0.0) for kind in seen.ready)
        if seen.speeds and all(kind in seen.speeds for kind in seen.ready):
            assert seen.queued_cost <= rule.target_wait_s * speed * (1 + 1e-9)


@hours
@given(st.floats(0, 11 * SPEED * 0.8), st.floats(5, 120))
def test_a_constant_load_changes_nothing_once_it_has_settled(rate: float, start_s: float) -> None:
    pool = Pool(RULE, lambda _: rate, start_s)
    pool.run(SETTLED_S)

    later = pool.run(1200)

    assert {d.action for d in later} == {Action.NOTHING}
    assert pool.wait_s <= RULE.target_wait_s


@hours
@given(st.floats(50, 10 * SPEED * 0.8), st.floats(20, 600))
def test_a_load_that_flaps_by_a_tenth_changes_nothing_once_it_has_settled(
    rate: float, period_s: float
) -> None:
    pool = Pool(RULE, lambda now: rate * (1 + 0.1 * math.sin(2 * math.pi * now / period_s)))
    pool.run(SETTLED_S)

    later = pool.run(1200)

    assert {d.action for d in later} == {Action.NOTHING}


@hours
@given(st.floats(0, 11 * SPEED * 0.8), st.lists(st.integers(1, 200), max_size=4))
@example(743.0, [14])
def test_a_scaler_killed_at_any_time_comes_to_a_number_as_right_as_one_that_never_was(
    rate: float, ticks: list[int]
) -> None:
    undisturbed, killed = (Pool(RULE, lambda _: rate) for _ in range(2))
    undisturbed.run(3000)

    for tick in ticks:
        killed.run(5.0 * tick)
        killed.restart_scaler()
    killed.run(3000)

    # Not always the same number: within the band one stays where it is.
    need = max(1.0, rate / (RULE.use_ratio * SPEED))
    for pool in (undisturbed, killed):
        num = pool.decisions[-1].after
        assert need <= num * (1 + RULE.band_ratio)
        assert num <= math.ceil(need) or num * (1 - RULE.band_ratio) <= need


@hours
@given(st.floats(50, 8 * SPEED * 0.8), st.sets(st.integers(0, 8), max_size=3))
def test_replicas_that_never_become_ready_do_not_keep_work_waiting(
    rate: float, stuck: set[int]
) -> None:
    pool = Pool(RULE, lambda _: rate, stuck=frozenset(stuck))

    pool.run(SETTLED_S)

    assert pool.wait_s <= RULE.target_wait_s


@hours
@given(st.floats(50, 8 * SPEED * 0.8), st.floats(0, 3000))
def test_without_work_none_run_in_the_end_and_from_none_work_is_done(
    rate: float, quiet_s: float
) -> None:
    rule = Scale(max=12, min=0)
    pool = Pool(rule, lambda now: 0.0 if now < 2000 + quiet_s else rate)

    asleep = pool.run(2000)
    pool.run(quiet_s + SETTLED_S)

    assert asleep[-1].after == 0
    assert pool.decisions[-1].after > 0
    assert pool.wait_s <= rule.target_wait_s
