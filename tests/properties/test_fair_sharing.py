"""Fair sharing, for every policy, against the bound that it states, by simulation in virtual time.

After every event a referee, who counts for itself, compares the work done for flows that are active
together, and for classes; a slot must not stand idle while somebody could use it. The last tests
remove one part of the algorithm each and expect that to be noticed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler import moves, plugins, policies
from scheduler.fair_queue import FairQueue
from scheduler.flow import CLASS_WEIGHTS, Band, Flow
from scheduler.policies import deficit_round_robin, fcfs, virtual_time
from scheduler.policies.base import Policy
from scheduler.records import changed
from scheduler.stores.base import Transaction
from scheduler.task import Task
from scheduler.testing.simulation.referee import Referee
from scheduler.testing.tasks import MODEL, memory_transaction, rules, submission
from tests.properties.fair_simulation import (
    ESTIMATES,
    Burst,
    Scenario,
    Sender,
    Simulation,
    Unfair,
)
from tests.properties.fair_workloads import WORKLOADS

POLICIES: dict[str, Callable[[], Policy]] = {
    name: plugins.find(policies, name).Policy for name in plugins.names(policies)
}
BOUNDED = [name for name in POLICIES if name != "fcfs"]


def run(scenario: Scenario, policy: str, queue: type[FairQueue] = FairQueue) -> Referee:
    return Simulation(scenario, POLICIES[policy], queue).run()


@pytest.mark.parametrize("restarts", [0.0, 0.2], ids=["undisturbed", "restarted"])
@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("policy", POLICIES)
def test_a_workload_stays_within_the_bound(policy: str, workload: str, restarts: float) -> None:
    run(replace(WORKLOADS[workload], restarts=restarts), policy)


@pytest.mark.parametrize("policy", BOUNDED)
def test_losses_and_wrong_estimates_stay_within_the_bound(policy: str) -> None:
    senders = tuple(
        Sender(name, estimate=estimate) for name, estimate in zip("abcd", ESTIMATES, strict=True)
    )

    run(Scenario(13, senders, speeds=(5.0, 20.0), loss=0.2, restarts=0.1), policy)


def test_first_come_first_served_has_no_bound() -> None:
    def gap(flood: int) -> float:
        sizes = (("flood", Burst(0, flood)), ("late", Burst(1, 10)))
        scenario = Scenario(1, tuple(Sender(name, bursts=(burst,)) for name, burst in sizes))
        simulation = Simulation(scenario, fcfs.Policy)
        simulation.referee = widest = _Widest(fcfs.Policy())
        simulation.run()
        return widest.apart

    assert gap(200) > 1.8 * gap(100)
    assert gap(400) > 1.8 * gap(200)


class _Widest(Referee):
    """Judges nothing; says how far the two came apart while both waited."""

    apart = 0.0

    def look(self) -> list[str]:
        flows = [name for name in self._active if len(name) == 2]
        if len(flows) == 2:
            one, other = (self.done[name] for name in sorted(flows))
            self.apart = max(self.apart, abs(one - other))
        return []


# ------------------------------------------------------------------------------- random scenarios

BURSTS = st.lists(
    st.builds(
        Burst,
        st.floats(0, 60).map(lambda moment: round(moment, 1)),
        st.integers(1, 12),
        st.sampled_from(sorted(CLASS_WEIGHTS)),
    ),
    min_size=1,
    max_size=4,
).map(tuple)
CHANGES = st.lists(
    st.tuples(
        st.floats(0, 60).map(lambda moment: round(moment, 1)),
        st.sampled_from([250, 1000, 3000]),
        st.sampled_from([None, 1, 2]),
    ),
    max_size=2,
).map(tuple)


@st.composite
def senders(draw: st.DrawFn) -> tuple[Sender, ...]:
    return tuple(
        Sender(
            name,
            weight_permille=draw(st.sampled_from([1, 250, 333, 1000, 3000])),
            estimate=draw(st.sampled_from(sorted(ESTIMATES))),
            tokens=draw(st.sampled_from([(1, 4), (5, 40), (30, 120)])),
            bursts=draw(BURSTS),
            max_in_flight=draw(st.sampled_from([None, None, 1, 2])),
            max_queued=draw(st.sampled_from([None, None, 5])),
            changes=draw(CHANGES),
        )
        for name in "abcd"[: draw(st.integers(2, 4))]
    )


SCENARIOS = st.builds(
    Scenario,
    seed=st.integers(0, 2**32),
    senders=senders(),
    speeds=st.lists(st.sampled_from([5.0, 20.0]), min_size=1, max_size=4).map(tuple),
    loss=st.sampled_from([0.0, 0.0, 0.2]),
    restarts=st.sampled_from([0.0, 0.1]),
    most_leased=st.sampled_from([None, 1]),
)


@pytest.mark.parametrize("policy", POLICIES)
@given(SCENARIOS)
@settings(max_examples=80, deadline=None)
def test_active_tenants_and_classes_stay_within_the_bound(policy: str, scenario: Scenario) -> None:
    run(scenario, policy)


# ------------------------------------------------------------------------------------ by numbers


def test_a_short_request_is_served_promptly_beside_a_flood() -> None:
    with memory_transaction() as tx:
        book = rules()
        for number in range(200):
            moves.submit(tx, book, submission("flood"), f"f{number:03}", 0.0)
        moves.claim(tx, book, MODEL, "r", "demo__r0", 4, 0.0)
        moves.submit(tx, book, submission("chat"), "chat", 1.0)

        claimed = moves.claim(tx, book, MODEL, "r", "demo__r0", 2, 1.0).value

        assert "chat" in [grant.task.id for grant in claimed]


def test_weights_of_one_and_three_share_one_to_three_within_a_task() -> None:
    with memory_transaction() as tx:
        book, cost = rules(), 25
        tx.put_tenant(changed(tx.tenant("gold"), weight_permille=3000))
        for number in range(200):
            for tenant in ("gold", "plain"):
                moves.submit(tx, book, submission(tenant), f"{tenant}{number:03}", 0.0)
        for _ in range(120):
            moves.claim(tx, book, MODEL, "r", "demo__r0", 1, 0.0)
            served = {flow.tenant: flow.charged_cost for flow in tx.flows(MODEL)}

            assert abs(served["gold"] / 3 - served["plain"]) <= cost


def test_every_class_gets_its_floor_whatever_the_others_send() -> None:
    floor = {name: weight / sum(CLASS_WEIGHTS.values()) for name, weight in CLASS_WEIGHTS.items()}
    with memory_transaction() as tx:
        book, cost = rules(), 25
        for number in range(300):
            for name in CLASS_WEIGHTS:
                sent = submission(f"tenant of {name}", priority_class=name)
                moves.submit(tx, book, sent, f"{name}{number:03}", 0.0)
        for count in range(1, 250):
            moves.claim(tx, book, MODEL, "r", "demo__r0", 1, 0.0)
            for flow in tx.flows(MODEL):
                due = floor[flow.priority_class] * count * cost
                # Each of the others may be a task ahead.
                assert flow.charged_cost >= due - 2 * cost


def test_work_on_a_device_that_counts_double_is_half_the_work() -> None:
    with memory_transaction() as tx:
        book = rules()
        tx.put_cost_factor(MODEL, "fast", 2000)
        for number in range(200):
            for tenant in ("ann", "bob"):
                moves.submit(tx, book, submission(tenant), f"{tenant}{number:03}", 0.0)
        for _ in range(60):
            # Whoever goes next gets the fast device; then two turns on the slow one even it out.
            moves.claim(tx, book, MODEL, "r", "demo__r0", 1, 0.0, device_kind="fast")
            moves.claim(tx, book, MODEL, "r", "demo__r1", 2, 0.0, device_kind="slow")

        times = [flow.virtual_time for flow in tx.flows(MODEL)]

        assert abs(times[0] - times[1]) <= 2 * 25 * virtual_time.SCALE


# ------------------------------------------------------------------ what must not pass the referee


class WithoutLift(virtual_time.Policy):
    def join(self, tx: Transaction, flow: Flow, band: Band) -> tuple[Flow, Band]:
        return flow, band


class WithoutCharge(virtual_time.Policy):
    def charge(self, flow: Flow, price: int) -> Flow:
        return flow if price > 0 else super().charge(flow, price)


class RingThatNeverTurns(deficit_round_robin.Policy):
    def next(self, tx: Transaction, band: Band) -> Flow | None:
        return tx.next_flow(band.model, band.priority_class)


class RingThatForgetsDebts(deficit_round_robin.Policy):
    def charge(self, flow: Flow, price: int) -> Flow:
        return changed(flow, deficit=max(0, flow.deficit - price))


class WithoutSettlement(FairQueue):
    def settle(self, tx: Transaction, task: Task, used: int) -> None:
        super().settle(tx, task, used)
        flow = self._flow(tx, task)
        tx.put_flow(
            self._policy.charge(flow, -self._unsettled(tx, task, used))  # as it was charged before
        )

    def _unsettled(self, tx: Transaction, task: Task, used: int) -> int:
        cost = (used - task.settled_cost) * task.cost_factor_permille // 1000
        return self._prices(tx, task, cost)[0] - task.charged_virtual_time


class FixedOrder(FairQueue):
    def head(self, tx: Transaction, model: str, most_leased: int | None = None) -> Task | None:
        flows = [flow for flow in tx.flows(model) if flow.is_active]
        return tx.head(model, flows[0].priority_class, flows[0].tenant) if flows else None


class WithoutLiftOfBands(FairQueue):
    def _join_bands(self, tx: Transaction, band: Band) -> int:
        return band.virtual_time


class WithoutChargeOfBands(FairQueue):
    def _charge_band(self, tx: Transaction, flow: Flow, price: int) -> None:
        pass


class WithoutHold(FairQueue):
    def regulate(self, tx: Transaction, tenant: str, *, has_new_limit: bool = False) -> None:
        pass


class HoldForEver(FairQueue):
    def regulate(self, tx: Transaction, tenant: str, *, has_new_limit: bool = False) -> None:
        limit = tx.tenant(tenant).max_in_flight
        if limit is not None and sum(f.num_leased for f in tx.flows_of(tenant)) >= limit:
            super().regulate(tx, tenant, has_new_limit=has_new_limit)


class OvertakenWithoutEnd(virtual_time.Policy):
    def may_overtake(self, tx: Transaction, front: Flow, flow: Flow) -> bool:
        return True


OVERESTIMATING = Scenario(
    2,
    (
        Sender("honest", bursts=(Burst(0, 150),)),
        Sender("cautious", estimate="too high", bursts=(Burst(0, 150),)),
    ),
)
UNDERESTIMATING = Scenario(
    5,
    (
        Sender("honest", bursts=(Burst(0, 150),)),
        Sender("hasty", estimate="too low", bursts=(Burst(0, 150),)),
    ),
)
FLOODING = Scenario(
    3,
    (Sender("flood", bursts=(Burst(0, 100),)), Sender("other", bursts=(Burst(0, 100),))),
    speeds=(10.0,) * 4,
)
CLASS_RETURNS = Scenario(
    4,
    (
        Sender("a", bursts=(Burst(0, 150, "batch"),)),
        Sender("b", bursts=(Burst(0, 2, "interactive"), Burst(60, 150, "interactive"))),
    ),
)
MUTANTS: dict[str, tuple[Scenario, Callable[[], Policy], type[FairQueue]]] = {
    "lift": (WORKLOADS["a returning tenant"], WithoutLift, FairQueue),
    "charge": (FLOODING, WithoutCharge, FairQueue),
    "settlement": (OVERESTIMATING, virtual_time.Policy, WithoutSettlement),
    "settlement of the ring": (OVERESTIMATING, deficit_round_robin.Policy, WithoutSettlement),
    "fair order": (FLOODING, virtual_time.Policy, FixedOrder),
    "turning of the ring": (FLOODING, RingThatNeverTurns, FairQueue),
    "debts of the ring": (UNDERESTIMATING, RingThatForgetsDebts, FairQueue),
    "lift of bands": (CLASS_RETURNS, virtual_time.Policy, WithoutLiftOfBands),
    "charge of bands": (
        WORKLOADS["classes of one tenant and of several"],
        virtual_time.Policy,
        WithoutChargeOfBands,
    ),
    "hold": (WORKLOADS["caps and quotas"], virtual_time.Policy, WithoutHold),
    "release of a hold": (WORKLOADS["caps and quotas"], virtual_time.Policy, HoldForEver),
    "end of overtaking": (
        WORKLOADS["a slot is kept for those who come"],
        OvertakenWithoutEnd,
        FairQueue,
    ),
}


@pytest.mark.parametrize("removed", MUTANTS)
def test_the_referee_notices_what_was_removed(removed: str) -> None:
    scenario, policy, queue = MUTANTS[removed]

    with pytest.raises(Unfair):
        Simulation(scenario, policy, queue).run()


@pytest.mark.parametrize("policy", BOUNDED)
@pytest.mark.parametrize("scenario", [OVERESTIMATING, UNDERESTIMATING, FLOODING, CLASS_RETURNS])
def test_the_referee_lets_the_real_queue_pass(policy: str, scenario: Scenario) -> None:
    run(scenario, policy)


def test_the_bound_is_not_far_from_what_happens() -> None:
    assert run(WORKLOADS["overload"], "virtual_time").closest > 0.4
